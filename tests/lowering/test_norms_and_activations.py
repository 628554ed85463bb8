"""Normalisations and activations in basic operators, against float64 and against the operator itself."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from vitesse.lowering.lower import lower_model

X = normal(2, 5, 8, seed=1, offset=0.5)
SCALE, BIAS = normal(8, seed=2), normal(8, seed=3)


def lowered(model: onnx.ModelProto, name: str, count: int = 1) -> onnx.ModelProto:
    done = lower_model(model, [name])
    assert done.changes == {name: count}
    onnx.checker.check_model(done.model, full_check=True)
    return done.model


def layer_norm64(x: np.ndarray, axes: tuple[int, ...], epsilon: float = 1e-5) -> np.ndarray:
    x = x.astype(np.float64)
    deviation = x - x.mean(axes, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(axes, keepdims=True) + epsilon)


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize(("axis", "size"), [(-1, (8,)), (2, (8,)), (1, (5, 8)), (-2, (5, 8))])
def test_layer_norm_agrees_with_float64(opset: int, axis: int, size: tuple[int, ...]) -> None:
    scale, bias = normal(*size, seed=2), normal(*size, seed=3)
    model = graph(
        f"y = LayerNormalization<axis={axis}, epsilon=0.001>(x, s, b)", opset=opset, s=scale, b=bias
    )
    after = lowered(model, "layer_norm")
    assert "LayerNormalization" not in ops(after)
    assert next(entry.version for entry in after.opset_import) == opset
    expected = layer_norm64(X, tuple(range(3 - len(size), 3)), 1e-3) * scale + bias
    np.testing.assert_allclose(run(after, {"x": X})[0], expected, atol=5e-6)


def test_layer_norm_without_bias_and_of_constant_rows() -> None:
    model = graph("y = LayerNormalization(x, s)", s=SCALE)
    rows = np.full((1, 5, 8), 3.0, np.float32)
    assert np.abs(run(lowered(model, "layer_norm"), {"x": rows})[0]).max() == 0.0


def test_half_precision_is_normalised_in_float32() -> None:
    body = "h = Cast<to=10>(x) n = LayerNormalization(h, s) y = Cast<to=1>(n)"
    model = graph(body, s=np.ones(8, np.float16))
    x = 300 * X  # its squares overflow float16
    np.testing.assert_allclose(
        run(lowered(model, "layer_norm"), {"x": x})[0], layer_norm64(x, (-1,)), atol=5e-3
    )
    unstashed = graph(body.replace("(h, s)", "<stash_type=10>(h, s)"), s=np.ones(8, np.float16), check=False)
    assert "Cast" in ops(lower_model(unstashed, ["layer_norm"]).model)


def test_a_layer_norm_whose_mean_is_read_stays() -> None:
    model = graph("y, m = LayerNormalization(x, s)", outputs="float[N,5,8] y, float[N,5,1] m", s=SCALE)
    assert ops(lowered(model, "layer_norm", count=0)) == {"LayerNormalization": 1}


def test_integers_are_left_alone() -> None:
    model = graph("y = HardSwish(x)", "int32[N,5,8] x", "int32[N,5,8] y", 14, check=False)
    done = lower_model(model, ["hard_swish"])
    assert done.changes == {"hard_swish": 0}
    assert done.reasons == {"hard_swish": ("the input is INT32, not floating point",)}


def test_rms_norm_agrees_with_float64() -> None:
    model = graph("y = RMSNormalization<epsilon=0.01>(x, s)", opset=23, s=SCALE)
    x = X.astype(np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.01) * SCALE
    np.testing.assert_allclose(run(lowered(model, "rms_norm"), {"x": X})[0], expected, atol=5e-6)


@pytest.mark.parametrize("size", ["4,6", "H,W"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_agrees_with_float64(groups: int, size: str) -> None:
    scale, bias = normal(6, seed=2), normal(6, seed=3)
    model = graph(
        f"y = GroupNormalization<num_groups={groups}>(x, s, b)",
        f"float[N,6,{size}] x",
        f"float[N,6,{size}] y",
        21,
        s=scale,
        b=bias,
    )
    after = lowered(model, "group_norm")
    assert ("Shape" in ops(after)) == (size == "H,W")
    x = normal(3, 6, 4, 6, seed=4)
    grouped = layer_norm64(x.reshape(3, groups, -1), (-1,)).reshape(x.shape)
    expected = grouped * scale[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(run(after, {"x": x})[0], expected, atol=5e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_agrees_with_float64(approximate: str) -> None:
    model = graph(f'y = Gelu<approximate="{approximate}">(x)', opset=20)
    x = np.concatenate([3 * X.ravel(), [0, -40, 40, 1e-20, 65504]]).astype(np.float32)
    x = np.resize(x, (3, 5, 8))
    w = x.astype(np.float64)
    gate = (
        np.tanh(math.sqrt(2 / math.pi) * (w + 0.044715 * w**3))
        if approximate == "tanh"
        else np.vectorize(math.erf)(w / math.sqrt(2))
    )
    np.testing.assert_allclose(
        run(lowered(model, "gelu"), {"x": x})[0], w * 0.5 * (1 + gate), atol=2e-6, rtol=1e-6
    )


def test_hard_swish_agrees_with_float64() -> None:
    x = np.linspace(-6, 6, 80, dtype=np.float32).reshape(2, 5, 8)
    expected = x * np.clip(x.astype(np.float64) / 6 + 0.5, 0, 1)
    for opset in (14, 22):
        model = graph("y = HardSwish(x)", opset=opset)
        np.testing.assert_allclose(run(lowered(model, "hard_swish"), {"x": x})[0], expected, atol=1e-6)
