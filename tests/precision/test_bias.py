"""The mean shift that rounding weights makes, by hand and on whole layers run in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tiny_onnx import save
from vitesse.errors import ModelError
from vitesse.precision.bias import corrected_bias


def rounded(weight: NDArray[np.float32], step: float = 0.25) -> NDArray[np.float32]:
    return (np.rint(weight / step) * step).astype(np.float32)


def test_a_linear_layer_by_hand() -> None:
    weight = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
    coarse = np.array([[1.0, 2.5], [3.0, 4.0], [4.0, 6.0]], np.float32)
    # Output 0 loses 1 · E[x2] = 30, output 1 gains 0.5 · E[x0] = 5: the bias takes the opposite.
    mean = np.array([10.0, 20.0, 30.0])
    np.testing.assert_array_equal(corrected_bias(weight, coarse, mean, op_type="MatMul"), [30.0, -5.0])
    transposed = corrected_bias(weight.T, coarse.T, mean, op_type="Gemm", trans_b=True)
    np.testing.assert_array_equal(transposed, [30.0, -5.0])


def test_a_convolution_by_hand() -> None:
    # One output of two inputs, kernel 1 × 2: errors 0.1 + 0.2 on input 0 and -0.5 + 0 on input 1.
    weight = np.zeros((1, 2, 1, 2))
    coarse = np.array([[[[0.1, 0.2]], [[-0.5, 0.0]]]])
    shift = corrected_bias(weight, coarse, np.array([10.0, 4.0]), op_type="Conv")
    np.testing.assert_allclose(shift, [-(0.3 * 10 - 0.5 * 4)])


def test_groups_meet_the_means_of_their_own_inputs_only() -> None:
    # Two groups of one input each, two outputs a group; every weight rounds up by 1.
    weight = np.zeros((4, 1, 1, 1))
    shift = corrected_bias(weight, weight + 1, np.array([3.0, 7.0]), op_type="Conv", group=2)
    np.testing.assert_array_equal(shift, [-3.0, -3.0, -7.0, -7.0])


def test_weights_that_round_to_themselves_need_no_correction() -> None:
    weight = np.ones((3, 2), np.float32)
    assert not corrected_bias(weight, weight, np.ones(3), op_type="MatMul").any()


@pytest.mark.parametrize(
    ("op_type", "shape", "settings"),
    [
        ("MatMul", (4, 3), {}),
        ("Gemm", (3, 4), {"trans_b": True}),
        ("Conv", (3, 4, 2, 2), {}),
        ("Conv", (6, 2, 1, 1), {"group": 2}),
    ],
)
def test_means_of_another_number_of_channels_are_refused(
    op_type: str, shape: tuple[int, ...], settings: dict[str, int]
) -> None:
    weight = np.zeros(shape)
    with pytest.raises(ModelError, match=rf"mean of 5 channels(.|\n)*{op_type}(.|\n)*expected: 4 channels"):
        corrected_bias(weight, weight, np.zeros(5), op_type=op_type, **settings)


@pytest.mark.parametrize(
    ("op_type", "weight_shape", "x_shape", "settings", "left"),
    [
        ("MatMul", (8, 5), (40, 6, 8), {}, 1e-4),
        ("Gemm", (5, 8), (40, 8), {"transB": 1}, 1e-4),
        ("Conv", (6, 4, 1, 1), (40, 8, 7, 7), {"group": 2}, 1e-4),
        # Corners meet fewer pixels of the image than its middle does, so a mean over the image is not quite theirs.
        ("Conv", (6, 4, 3, 3), (40, 8, 20, 20), {"group": 2}, 0.05),
        ("Conv", (6, 4, 3, 3), (40, 8, 20, 20), {"group": 2, "pads": [1, 1, 1, 1]}, 0.2),
    ],
)
def test_the_mean_error_vanishes_on_the_images_that_were_calibrated_on(
    tmp_path: Path,
    op_type: str,
    weight_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    settings: dict[str, Any],
    left: float,
) -> None:
    random = np.random.default_rng(3)
    weight = random.standard_normal(weight_shape).astype(np.float32)
    x = random.standard_normal(x_shape).astype(np.float32) + 2
    axis = 1 if op_type == "Conv" else x.ndim - 1
    others = tuple(at for at in range(x.ndim) if at != axis)
    node = helper.make_node(op_type, ["x", "w"], ["y"], **settings)
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(x_shape))] for name in ("x", "y")
    ]

    def mean_output(values: NDArray[np.float32]) -> NDArray[np.float64]:
        path = save(tmp_path / "layer.onnx", [node], *ends, {"w": values}).path
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found: NDArray[np.float64] = session.run(None, {"x": x})[0].mean(axis=others, dtype=np.float64)
        return found

    error = mean_output(rounded(weight)) - mean_output(weight)
    shift = corrected_bias(
        weight,
        rounded(weight),
        x.mean(axis=others, dtype=np.float64),
        op_type=op_type,
        group=settings.get("group", 1),
        trans_b="transB" in settings,
    )
    assert np.abs(error).max() > 0.1, "rounding does shift the outputs"
    assert np.abs(error + shift).max() < left * np.abs(error).max()
