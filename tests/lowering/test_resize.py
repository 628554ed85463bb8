from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from vitesse.lowering.lower import lower_model

X = normal(2, 3, 6, 7, seed=1)
COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
SMOOTH = [f'mode="{mode}", antialias={filtered}' for mode in ("linear", "cubic") for filtered in (0, 1)]
NEAREST = [
    f'mode="nearest", nearest_mode="{rounding}"'
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
]


def model(
    attributes: str, *, height: float = 1.5, width: float = 0.5, image: str = "N,3,6,7", opset: int = 19
) -> onnx.ModelProto:
    out = f"N,3,{int(6 * height)},{int(7 * width)}" if image == "N,3,6,7" else "N,3,H,W"
    scales = np.array([1, 1, height, width], np.float32)
    return graph(
        f"y = Resize<{attributes}>(x, , scales)", f"float[{image}] x", f"float[{out}] y", opset, scales=scales
    )


@pytest.mark.parametrize(
    "attributes", [*SMOOTH, 'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1', *NEAREST]
)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_every_mode_is_one_gather_or_product_for_each_axis(attributes: str, coordinates: str) -> None:
    before = model(f'{attributes}, coordinate_transformation_mode="{coordinates}"')
    done = lower_model(before, ["resize"])
    assert done.changes == {"resize": 1}
    assert ops(done.model) == ({"Gather": 2} if "nearest" in attributes else {"MatMul": 2})
    np.testing.assert_allclose(run(done.model, {"x": X})[0], run(before, {"x": X})[0], atol=2e-6)


@pytest.mark.parametrize(("height", "width"), list(itertools.product((0.4, 1.0, 3.0), repeat=2)))
def test_any_factor_is_met(height: float, width: float) -> None:
    before = model('mode="linear"', height=height, width=width)
    after = lower_model(before, ["resize"]).model
    assert ops(after)["MatMul"] == (height != 1) + (width != 1)
    np.testing.assert_allclose(run(after, {"x": X})[0], run(before, {"x": X})[0], atol=2e-6)


def test_lengths_may_be_given_instead_of_factors() -> None:
    for attributes, sizes, outside in (
        ('mode="cubic"', [2, 3, 11, 4], {}),
        ('mode="linear", axes=[2,3]', [11, 4], {}),
        (
            'mode="linear", axes=[3,2], keep_aspect_ratio_policy="not_larger"',
            [21, 12],
            {"rows": 12, "columns": 14},
        ),
    ):
        rows, columns = outside.get("rows", 11), outside.get("columns", 4)
        body = f"y = Resize<{attributes}>(x, , , sizes)"
        before = graph(
            body, "float[2,3,6,7] x", f"float[2,3,{rows},{columns}] y", 19, check=False, sizes=np.array(sizes)
        )
        done = lower_model(before, ["resize"])
        expected = run(before, {"x": X})[0]
        assert done.changes["resize"] == 1, (attributes, done.reasons)
        np.testing.assert_allclose(run(done.model, {"x": X})[0], expected, atol=2e-6)


def test_channels_can_be_repeated_but_not_blended() -> None:
    scales = np.array([1, 2, 1, 1], np.float32)
    for mode, count in (("nearest", 1), ("linear", 0)):
        before = graph(
            f'y = Resize<mode="{mode}">(x, , s)', "float[2,3,6,7] x", "float[2,6,6,7] y", 19, s=scales
        )
        done = lower_model(before, ["resize"])
        assert done.changes == {"resize": count}
        if count:
            np.testing.assert_array_equal(run(done.model, {"x": X})[0], run(before, {"x": X})[0])
        else:
            assert done.reasons == {"resize": ("it interpolates along other axes than the last two",)}


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (model('mode="linear"', image="N,3,H,W"), "the sizes are not static"),
        (
            graph(
                'y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, roi, s)',
                "float[2,3,6,7] x",
                "float[2,3,12,14] y",
                19,
                roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
                s=np.array([1, 1, 2, 2], np.float32),
            ),
            "it crops a region (tf_crop_and_resize)",
        ),
        (
            graph(
                'y = Resize<mode="linear">(x, , s)',
                "float[2,3,6,7] x, float[4] s",
                "float[2,3,A,B] y",
                19,
                check=False,
            ),
            "the scales are not constant",
        ),
    ],
)
def test_what_has_no_fixed_matrix_is_left_alone(before: onnx.ModelProto, reason: str) -> None:
    done = lower_model(before, ["resize"])
    assert (done.changes, done.reasons) == ({"resize": 0}, {"resize": (reason,)})
