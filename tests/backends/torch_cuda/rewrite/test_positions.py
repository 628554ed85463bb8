"""Constant positions in front of layers become a residual of the layers; those that cannot are noted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, rewritten, static
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.positions import positions
from vitesse.backends.torch_cuda.rewrite.reasons import Notes

X = {"x": normal(2, 5, 8)}
W, V, B, P = normal(8, 6, seed=1), normal(8, 6, seed=2), normal(6, seed=3), normal(1, 5, 8, seed=4)
OUT = "float[N,5,6] y"
LAYER = "s = Add(x, p) m = MatMul(s, w) y = Add(m, b)"


def of(body: str, outputs: str = OUT, inputs: str = "float[N,5,8] x", **more: np.ndarray) -> onnx.ModelProto:
    return graph(body, inputs, outputs, opset=20, check=False, **{"w": W, "v": V, "b": B, "p": P, **more})


@pytest.mark.parametrize("shape", [(1, 5, 8), (5, 8), (2, 5, 8)])
def test_positions_and_bias_become_one_constant_residual(shape: tuple[int, ...]) -> None:
    made = rewritten(of(LAYER, p=np.resize(P, shape)), X, linear, positions)
    step = only(made, "Linear")
    assert kinds(made) == {":Linear": 1}
    assert given(step)[0] == "x" and given(step)[3] is None
    expected = P[0].astype(np.float64) @ W.astype(np.float64) + B
    np.testing.assert_array_equal(step.inputs[4].const_value.numpy(), expected.astype(np.float32))


def test_one_position_for_all_tokens_becomes_the_bias() -> None:
    made = rewritten(of(LAYER, p=normal(8, seed=5)), X, linear, positions)
    assert kinds(made) == {":Linear": 1}
    assert len(given(only(made, "Linear"))) == 4


def test_positions_stay_in_front_of_the_activation() -> None:
    body = "s = Add(p, x) m = MatMul(s, w) c = Add(m, b) y = Relu(c)"
    made = rewritten(of(body), X, linear, positions)
    assert kinds(made) == {":Linear": 1}
    assert keywords(only(made, "Linear"))["residual_first"] == 1


def test_queries_and_keys_read_what_the_values_read() -> None:
    body = "s = Add(x, p) q = MatMul(s, w) k = MatMul(s, v) u = MatMul(x, w) qk = Mul(q, k) y = Mul(qk, u)"
    made = rewritten(of(body), X, linear, positions)
    assert {given(node)[0] for node in made.graph if node.op_type == "Linear"} == {"x"}
    assert "Add" not in kinds(made)


def test_a_sum_that_is_needed_anyhow_is_read_by_its_layer() -> None:
    model = of("s = Add(x, p) y = MatMul(s, w) z = Tanh(s)", f"{OUT}, float[N,5,8] z")
    notes = Notes()
    made = rewritten(model, X, linear, lambda made: positions(made, notes))
    assert given(only(made, "Linear"))[0] == "s"
    assert notes.lines() == ("positions: the sum is read elsewhere, too, and x by no other layer",)


def test_a_layer_with_a_residual_of_its_own_reads_the_sum() -> None:
    model = of("s = Add(x, p) m = MatMul(s, w) y = Add(m, r)", inputs="float[N,5,8] x, float[N,5,6] r")
    made = rewritten(model, {**X, "r": normal(2, 5, 6, seed=6)}, linear, positions)
    assert kinds(made) == {":Linear": 1, "Add": 1}


@pytest.mark.parametrize(
    ("other", "shape", "reason"),
    [
        ("r", (2, 5, 8), "positions: what is added in front of a layer is computed"),
        ("p", (2, 5, 8), "positions: every image has positions of its own"),
        (
            "p",
            (2, 1, 8),
            "positions: positions of (2, 1, 8) are broadcast to (2, 5, 8) in another way than over the batch",
        ),
    ],
)
def test_other_sums_stay_in_front_of_the_layer(other: str, shape: tuple[int, ...], reason: str) -> None:
    inputs, added = "float[N,5,8] x, float[N,5,8] r", normal(*shape, seed=7)
    model = of(f"t = Add(x, {other}) y = MatMul(t, w) z = Tanh(r)", f"{OUT}, float[N,5,8] z", inputs, p=added)
    notes = Notes()
    feeds = {**X, "r": normal(2, 5, 8, seed=8)}
    made = rewritten(model, feeds, linear, lambda made: positions(made, notes))
    assert kinds(made)["Add"] == 1
    assert notes.lines() == (reason,)


def test_what_float16_cannot_hold_stays_in_front_of_the_layer() -> None:
    half = {"x": X["x"].astype(np.float16)}
    big = {
        "p": np.full((1, 5, 8), 6e4, np.float16),
        "w": np.full((8, 6), 2.0, np.float16),
        "b": B.astype(np.float16),
    }
    made, notes = static(of(LAYER, "float16[N,5,6] y", "float16[N,5,8] x", **big), half), Notes()
    linear(made)
    assert positions(made, notes) == 0
    assert notes.lines() == ("positions: what the positions add exceeds float16",)
