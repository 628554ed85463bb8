"""A norm that one layer alone reads becomes part of that layer's step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, rewritten
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.norm import norm
from vitesse.backends.torch_cuda.rewrite.norm_linear import norm_linear

X = normal(2, 5, 8).astype(np.float16)
WEIGHTS = {
    "g": normal(8, seed=2).astype(np.float16),
    "b": normal(8, seed=3).astype(np.float16),
    "w": normal(8, 6, seed=4).astype(np.float16),
    "c": normal(6, seed=5).astype(np.float16),
}
NORM = "n = LayerNormalization <epsilon = 0.001> (x, g, b)"
LAYER = "p = MatMul(n, w) q = Add(p, c)"
RULES = (linear, norm, norm_linear)


def of(body: str, outputs: str = "float16[N,5,6] y") -> onnx.ModelProto:
    return graph(body, "float16[N,5,8] x", outputs, opset=20, check=False, **WEIGHTS)


def test_the_norm_and_its_only_reader_become_one_step() -> None:
    made = rewritten(of(f"{NORM} {LAYER} y = Relu(q)"), {"x": X}, *RULES, atol=2e-2)
    assert kinds(made) == {":NormLinear": 1}
    step = only(made, "NormLinear")
    assert given(step)[:3] == ["x", "g", "b"] and len(given(step)) == 5
    assert keywords(step)["activation"] == "relu"
    assert keywords(step)["epsilon"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"{NORM} {LAYER} y = Relu(q) z = Tanh(n)", "float16[N,5,6] y, float16[N,5,8] z"),
        (f"{NORM} {LAYER} y = Relu(q)", "float16[N,5,6] y, float16[N,5,8] n"),
        (f"s = Add(x, x) n = LayerNormalization (s, g, b) {LAYER} y = Relu(q)", "float16[N,5,6] y"),
    ],
    ids=["read elsewhere", "an output of the graph", "with a sum of its own"],
)
def test_a_norm_that_others_read_or_that_adds_stays_a_step_of_its_own(body: str, outputs: str) -> None:
    made = rewritten(of(body, outputs), {"x": X}, *RULES, atol=2e-2)
    assert kinds(made)[":Norm"] == 1 and kinds(made)[":Linear"] == 1


def test_float32_stays_in_two_steps() -> None:
    weights = {name: value.astype(np.float32) for name, value in WEIGHTS.items()}
    body, inputs = f"{NORM} {LAYER} y = Relu(q)", "float[N,5,8] x"
    model = graph(body, inputs, "float[N,5,6] y", opset=20, check=False, **weights)
    made = rewritten(model, {"x": X.astype(np.float32)}, *RULES, atol=1e-4)
    assert kinds(made) == {":Norm": 1, ":Linear": 1}
