from __future__ import annotations

import numpy as np
import pytest

from fusing import graph, normal, ops, run
from vitesse.fusion import fuse_model

WEIGHT, BIAS = normal(8, 3, seed=1), normal(3, seed=2)
MATRIX = {"inputs": "float[N,8] x", "outputs": "float[N,3] y"}


@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
def test_a_linear_layer_on_a_matrix_becomes_gemm(add: str) -> None:
    fused = fuse_model(graph(f"m = MatMul(x, w) y = {add}", **MATRIX, w=WEIGHT, b=BIAS))
    assert ops(fused.model) == {"Gemm": 1}
    assert fused.changes["gemm"] == 1
    x = normal(4, 8)
    expected = x.astype(np.float64) @ WEIGHT.astype(np.float64) + BIAS
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], expected, atol=5e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "bias", "reason"),
    [
        (
            "float[N,5,8] x",
            "float[N,5,3] y",
            BIAS,
            "the input has rank 3, Gemm takes 2 and was not faster with reshapes",
        ),
        (
            "float[N,8] x",
            "float[5,3] y",
            normal(5, 3),
            "the added term has shape [5, 3], not one number per output",
        ),
    ],
)
def test_a_linear_layer_is_left_alone_with_a_reason(inputs, outputs, bias, reason) -> None:  # type: ignore[no-untyped-def]
    fused = fuse_model(graph("m = MatMul(x, w) y = Add(m, b)", inputs, outputs, w=WEIGHT, b=bias))
    assert fused.changes["gemm"] == 0
    assert fused.reasons["gemm"] == (reason,)
    assert ops(fused.model) == {"MatMul": 1, "Add": 1}


def test_a_product_of_two_activations_is_left_alone() -> None:
    model = graph("m = MatMul(x, w) y = Add(m, b)", "float[N,8] x, float[8,3] w", MATRIX["outputs"], b=BIAS)
    fused = fuse_model(model)
    assert fused.changes["gemm"] == 0
    assert fused.reasons["gemm"] == ("the right side of the MatMul is not a constant",)


def test_no_linear_layer_counts_zero() -> None:
    assert fuse_model(graph("y = Relu(x)")).changes["gemm"] == 0
