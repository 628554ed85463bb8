"""E4M3 weights share one scale where their channels' scales are powers of two apart, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import only, rewritten
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.one_scale import one_scale
from vitesse.backends.torch_cuda.rewrite.quantised import quantised
from vitesse.precision.fp8 import NUMBER, to_e4m3
from vitesse.precision.weights import rounded_weight

X = {"x": normal(3, 5, 32)}
BODY = """
q = QuantizeLinear(x, sx, z) d = DequantizeLinear(q, sx, z)
e = DequantizeLinear <axis = 1> (w, sw, zw) y = MatMul(d, e)
"""


def of(weight: NDArray[Any], scales: NDArray[np.float32]) -> onnx.ModelProto:
    constants: dict[str, NDArray[Any]] = {
        "sx": np.float32(0.011),
        "z": np.zeros((), NUMBER),
        "w": weight,
        "sw": scales,
        "zw": np.zeros(weight.shape[1], NUMBER),
    }
    width = weight.shape[1]
    return graph(BODY, "float[N,5,32] x", f"float[N,5,{width}] y", opset=23, check=False, **constants)


def scale_after(weight: NDArray[Any], scales: NDArray[np.float32], **given: float) -> NDArray[np.float32]:
    step = only(rewritten(of(weight, scales), X, quantised, one_scale, **given), "Linear")
    value = step.inputs[2]
    assert value is not None and value.const_value is not None
    assert step.inputs[1] is not None and step.inputs[1].dtype == ir.DataType.FLOAT8E4M3FN
    return np.asarray(value.const_value.numpy())


def test_weights_that_vitesse_quantised_get_one_scale() -> None:
    real = normal(32, 12, seed=3) * np.logspace(-1, 1, 12, dtype=np.float32)
    stored, grid = rounded_weight(real, 1, number="fp8", bits=8)
    assert len(set(grid.scale.tolist())) > 4
    (scale,) = scale_after(stored, grid.scale)
    assert scale == np.float32(0.011) * grid.scale.max()


def test_a_channel_of_zeros_does_not_decide() -> None:
    weight = to_e4m3(100 * normal(32, 3, seed=4) * np.array([1, 0, 1], np.float32))
    (scale,) = scale_after(weight, np.array([0.25, 1.0, 0.125], np.float32))
    assert scale == np.float32(0.011) * np.float32(0.25)


@pytest.mark.parametrize(
    "scales",
    [[0.25, 0.3, 0.125], [1.0, 1.0, 2.0**-16], [0.25, -0.25, 0.25]],
    ids=["not powers of two apart", "what E4M3 cannot hold would be lost", "a negative scale"],
)
def test_other_scales_stay_by_channel(scales: list[float]) -> None:
    weight = to_e4m3(100 * normal(32, 3, seed=4))
    assert len(scale_after(weight, np.array(scales, np.float32))) == 3
