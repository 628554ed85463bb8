"""FP8: E4M3's rounding and saturation by hand, and the same numbers from what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from fusing import graph, normal, run
from quantising import constants, quantised
from vitesse.precision.fp8 import LARGEST, to_e4m3
from vitesse.precision.weights import activation_grid, rounded_weight

EYE = np.eye(2, dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (0.0, 0.0),
        (17.0, 16.0),  # between 16 and 18: the even mantissa
        (19.0, 20.0),  # between 18 and 20: the even mantissa
        (18.5, 18.0),
        (-3.3, -3.25),  # steps of 1/4 from 2 to 4
        (448.0, 448.0),
        (460.0, 448.0),
        (1e30, 448.0),
        (-1000.0, -448.0),
        (2.0**-9, 2.0**-9),  # the smallest number
        (2.0**-10, 0.0),  # half of it: ties to even
        (3 * 2.0**-10, 2.0**-8),
    ],
)
def test_e4m3_rounds_to_three_bits_of_mantissa_and_saturates_at_448(value: float, stored: float) -> None:
    assert float(to_e4m3(np.array([value], np.float32))[0]) == stored


def test_nan_cannot_be_stored() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_e4m3(np.array([np.nan], np.float32))


def test_scales_put_the_largest_magnitude_on_448() -> None:
    assert activation_grid(-3.5, 1.0, number="fp8", symmetric=True).scale == np.float32(3.5 / LARGEST)
    _, grid = rounded_weight(np.array([[1, -896], [2, 8]], np.float32), 1, number="fp8", bits=8)
    assert grid.scale.tolist() == [2**-7, 2], "2 / 448 and 896 / 448, up to the next power of two"


def test_weights_have_scales_that_are_powers_of_two_and_reach_into_the_upper_half() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 50)).astype(np.float32) * np.logspace(-6, 4, 50)
    stored, grid = rounded_weight(weight.astype(np.float32), 1, number="fp8", bits=8)
    assert (np.frexp(grid.scale)[0] == 0.5).all()
    most = np.abs(stored.astype(np.float32)).max(axis=0)
    assert ((most >= 224) & (most <= 448)).all()
    half = (stored.astype(np.float32) * grid.scale).astype(np.float16)
    exact = np.abs(weight).max(axis=0) > 1e-2  # what float16 holds as a normal number
    np.testing.assert_array_equal(half[:, exact], (stored.astype(np.float32) * grid.scale)[:, exact])


def test_a_channel_of_zeros_in_e4m3_has_the_scale_1() -> None:
    stored, grid = rounded_weight(np.zeros((3, 2), np.float32), 1, number="fp8", bits=8)
    assert grid.scale.tolist() == [1, 1]
    assert not stored.astype(np.float32).any()


def test_a_linear_layer_in_fp8_answers_as_computed_by_hand(tmp_path: Path) -> None:
    weight = np.array([[127, -63.5], [0, 1]], np.float32)
    model = graph("h = MatMul(x, w) y = MatMul(h, head)", "float[N,2] x", "float[N,2] y", w=weight, head=EYE)
    made, built = quantised(tmp_path, model, {"x": (-448.0, 448.0)}, number="fp8")
    # x = (17, 1000) is stored as (16, 448). Column 0 has the scale 1/2, and 127 is 254 of it, between 240 and 256;
    # column 1 has 1/4: 63.5 is 254 of it, too.
    assert run(made, {"x": np.array([[17, 1000]], np.float32)})[0].ravel().tolist() == pytest.approx(
        [16 * 128, -16 * 64 + 448 * 1]
    )
    assert made.opset_import[0].version == 19
    assert constants(made)["w_quantized"].dtype.name == "float8_e4m3fn"
    assert built.artifact.provenance.options["number"] == "fp8"
    assert built.changes["Linear to FP8"] == 1


def test_every_zero_point_is_e4m3_and_no_integer_is_in_the_file(tmp_path: Path) -> None:
    model = graph(
        "a = Conv(x, s) b = Relu(a) c = Conv(b, w) d = Flatten(c) y = MatMul(d, head)",
        "float[N,3,2,2] x",
        "float[N,2] y",
        opset=18,
        s=normal(4, 3, 1, 1),
        w=normal(4, 4, 1, 1),
        head=normal(16, 2),
    )
    made, _ = quantised(tmp_path, model, {"b": (-3.0, 3.0), "c": (-9.0, 9.0)}, number="fp8")
    zeros = {t.data_type for t in made.graph.initializer if t.name.endswith("_zero_point")}
    assert zeros == {TensorProto.FLOAT8E4M3FN}
    assert not {TensorProto.INT8, TensorProto.UINT8} & {t.data_type for t in made.graph.initializer}
    x = {"x": normal(2, 3, 2, 2, seed=5)}
    np.testing.assert_allclose(run(made, x)[0], run(model, x)[0], atol=0.15 * np.abs(run(model, x)[0]).max())


def test_a_newer_opset_stays(tmp_path: Path) -> None:
    model = graph(
        "h = MatMul(x, w) y = MatMul(h, head)", "float[N,2] x", "float[N,2] y", opset=21, w=EYE, head=EYE
    )
    made, _ = quantised(tmp_path, model, {"x": (-1.0, 1.0)}, number="fp8")
    assert made.opset_import[0].version == 21
    assert onnx.checker.check_model(made) is None
