"""LayerNormalization becomes a step, with the sum in front of it where no layer took that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, kinds, only, rewritten
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.norm import norm
from vitesse.backends.torch_cuda.rewrite.reasons import Notes

X, R = normal(2, 5, 8, offset=3.0), normal(2, 5, 8, seed=1)
G, B = normal(8, seed=2), normal(8, seed=3)
TWO = "float[N,5,8] x, float[N,5,8] r"
NORM = "LayerNormalization <epsilon = 0.001>"


def of(
    body: str, inputs: str = "float[N,5,8] x", outputs: str = "float[N,5,8] y", **more: np.ndarray
) -> onnx.ModelProto:
    return graph(body, inputs, outputs, opset=20, check=False, **{"g": G, "b": B, **more})


def outputs_of(made: object) -> list[str]:
    return [output.name or "" for output in only(made, "Norm").outputs]  # type: ignore[arg-type]


def test_a_norm_alone_has_one_output_that_is_written() -> None:
    made = rewritten(of(f"y = {NORM} (x, g, b)"), {"x": X}, norm)
    assert kinds(made) == {":Norm": 1}
    assert outputs_of(made) == ["y", "", ""]
    assert only(made, "Norm").attributes["epsilon"].as_float() == pytest.approx(0.001)


def test_a_norm_without_a_bias_is_one_too() -> None:
    assert kinds(rewritten(of(f"y = {NORM} (x, g)"), {"x": X}, norm)) == {":Norm": 1}


def test_the_sum_in_front_is_computed_by_the_step() -> None:
    made = rewritten(of(f"s = Add(x, r) y = {NORM} (s, g, b)", TWO), {"x": X, "r": R}, norm)
    assert kinds(made) == {":Norm": 1}
    assert given(only(made, "Norm"))[3] == "r" and outputs_of(made) == ["y", "", ""]


def test_a_sum_that_is_read_elsewhere_is_the_second_output() -> None:
    body = f"s = Add(x, r) t = Tanh(s) n = {NORM} (s, g, b) y = Add(n, t)"
    made = rewritten(of(body, TWO), {"x": X, "r": R}, norm)
    assert kinds(made) == {":Norm": 1, "Tanh": 1, "Add": 1}
    assert outputs_of(made)[1] == "s"


def test_a_sum_that_the_caller_reads_is_the_second_output() -> None:
    model = of(f"s = Add(x, r) y = {NORM} (s, g, b)", TWO, "float[N,5,8] y, float[N,5,8] s")
    made = rewritten(model, {"x": X, "r": R}, norm)
    assert kinds(made) == {":Norm": 1} and outputs_of(made)[1] == "s"


def test_of_two_norms_over_one_sum_one_computes_it() -> None:
    body = f"s = Add(x, r) n = {NORM} (s, g, b) m = {NORM} (s, b, g) y = Sub(n, m)"
    made = rewritten(of(body, TWO), {"x": X, "r": R}, norm)
    assert kinds(made) == {":Norm": 2, "Sub": 1}


def test_constant_positions_are_a_residual_that_the_batch_shares() -> None:
    made = rewritten(of(f"s = Add(x, p) y = {NORM} (s, g, b)", p=normal(1, 5, 8, seed=4)), {"x": X}, norm)
    residual = only(made, "Norm").inputs[3]
    assert kinds(made) == {":Norm": 1} and residual is not None and residual.shape == (5, 8)


def test_a_layer_takes_the_residual_before_the_norm_can() -> None:
    body = f"p = MatMul(x, w) s = Add(p, r) y = {NORM} (s, g, b)"
    made = rewritten(of(body, TWO, w=normal(8, 8, seed=5)), {"x": X, "r": R}, linear, norm, atol=1e-5)
    assert kinds(made) == {":Linear": 1, ":Norm": 1}
    assert len(given(only(made, "Norm"))) == 3 and given(only(made, "Linear"))[4] == "r"


def test_a_sum_that_repeats_a_row_for_each_position_stays_outside() -> None:
    model = of(f"s = Add(x, r) y = {NORM} (s, g, b)", "float[N,5,8] x, float[N,1,8] r")
    made = rewritten(model, {"x": X, "r": R[:, :1].copy()}, norm)
    assert kinds(made) == {":Norm": 1, "Add": 1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "y = LayerNormalization <axis = 1> (x, gg, bb)",
            "norm: it is over the axes from 1 on, not over the last",
        ),
        (
            f"t = Tanh(g1) h = Mul(t, r1) y = {NORM} (x, h, b)",
            "norm: weight or bias is computed, of another type, or not one number a channel",
        ),
    ],
)
def test_another_norm_is_left_alone_and_noted(body: str, reason: str) -> None:
    notes = Notes()
    model = of(body, "float[N,5,8] x, float[8] r1", gg=normal(5, 8), bb=normal(5, 8), g1=G)
    made = rewritten(model, {"x": X, "r1": B}, lambda made: norm(made, notes))
    assert kinds(made)["LayerNormalization"] == 1
    assert notes.lines() == (reason,)
