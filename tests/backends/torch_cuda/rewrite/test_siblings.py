"""Layers that read the same become one; attention reads its part by an offset, and everything else a slice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, plain, rewritten, static
from fusing import graph, normal, run
from vitesse.backends.torch_cuda.rewrite.attention import attention
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.positions import positions
from vitesse.backends.torch_cuda.rewrite.reasons import Notes
from vitesse.backends.torch_cuda.rewrite.siblings import siblings

X = {"x": normal(2, 5, 8)}
WEIGHTS = {name: normal(8, 8, seed=at) for at, name in enumerate("abcdef")}
RULES = (attention, linear, positions, siblings)
QKV = "q0 = MatMul(x, a) q = Add(q0, bias) k = MatMul(x, b) v = MatMul(x, c)"
ATTENTION = "y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)"


def of(
    body: str, outputs: str = "float[N,5,8] y", inputs: str = "float[N,5,8] x", **more: np.ndarray
) -> onnx.ModelProto:
    constants = {**WEIGHTS, "bias": normal(8, seed=9), "p": normal(1, 5, 8, seed=10), **more}
    return graph(body, inputs, outputs, opset=23, check=False, **constants)


def offsets(step: object) -> tuple[int, ...]:
    attributes = keywords(step)  # type: ignore[arg-type]
    return tuple(attributes[f"{name}_offset"] for name in "qkv")


def test_queries_keys_and_values_are_one_product() -> None:
    made = rewritten(of(f"{QKV} {ATTENTION}"), X, *RULES)
    layer, step = only(made, "Linear"), only(made, "Attention")
    assert kinds(made) == {":Linear": 1, ":Attention": 1}
    assert given(step)[:3] == [layer.outputs[0].name] * 3 and offsets(step) == (0, 8, 16)
    assert list(layer.outputs[0].shape or ()) == [2, 5, 24]
    assert layer.inputs[3] is not None and not layer.inputs[3].const_value.numpy()[8:].any()


def test_positions_of_queries_and_keys_are_zeros_for_the_values() -> None:
    body = f"s = Add(x, p) q = MatMul(s, a) k = MatMul(s, b) v0 = MatMul(x, c) v = Add(v0, bias) {ATTENTION}"
    made = rewritten(of(body), X, *RULES, atol=5e-6)
    layer = only(made, "Linear")
    assert kinds(made) == {":Linear": 1, ":Attention": 1}
    residual = layer.inputs[4].const_value.numpy()
    by_offset = dict(zip("qkv", offsets(only(made, "Attention")), strict=True))
    values = residual[:, by_offset["v"] : by_offset["v"] + 8]
    np.testing.assert_array_equal(values, np.broadcast_to(normal(8, seed=9), (5, 8)))
    assert given(layer)[3] is None


def test_keys_and_values_of_two_layers_of_a_decoder_are_one_product() -> None:
    node = "Attention <q_num_heads = 2, kv_num_heads = 2>"
    body = (
        f"m = Add(x, p) k = MatMul(m, a) v = MatMul(x, b) h = {node} (t, k, v)"
        f" k2 = MatMul(m, c) v2 = MatMul(x, d) y = {node} (h, k2, v2)"
    )
    feeds = {**X, "t": normal(2, 3, 8, seed=11)}
    made = rewritten(of(body, "float[N,3,8] y", "float[N,5,8] x, float[N,3,8] t"), feeds, *RULES, atol=5e-6)
    assert kinds(made) == {":Linear": 1, ":Attention": 2}
    assert list(only(made, "Linear").outputs[0].shape or ()) == [2, 5, 32]
    spans = [offsets(node)[1:] for node in made.graph if node.op_type == "Attention"]
    assert sorted(at for span in spans for at in span) == [0, 8, 16, 24]


def test_another_reader_of_a_part_gets_a_slice() -> None:
    made = rewritten(of(f"{QKV} {ATTENTION} z = Tanh(k)", "float[N,5,8] y, float[N,5,8] z"), X, *RULES)
    assert kinds(made) == {":Linear": 1, ":Attention": 1, "Slice": 1, "Tanh": 1}


def test_a_part_that_is_an_output_keeps_its_name() -> None:
    made = rewritten(of(f"{QKV} {ATTENTION}", "float[N,5,8] y, float[N,5,8] k"), X, *RULES)
    assert kinds(made) == {":Linear": 1, ":Attention": 1, "Slice": 1}
    assert [output.name for output in made.graph.outputs] == ["y", "k"]


def test_layers_that_no_attention_reads_stay_apart() -> None:
    made = rewritten(of("q = MatMul(x, a) k = MatMul(x, b) t = Tanh(q) u = Tanh(k) y = Add(t, u)"), X, *RULES)
    assert kinds(made)[":Linear"] == 2


def test_layers_of_different_inputs_stay_apart() -> None:
    body = f"t = Tanh(x) q = MatMul(t, a) k = MatMul(x, b) v = MatMul(x, c) {ATTENTION}"
    made = rewritten(of(body), X, *RULES)
    assert kinds(made)[":Linear"] == 2


def test_a_layer_with_a_computed_residual_stays_apart_and_is_noted() -> None:
    body, notes = f"q0 = MatMul(x, a) q = Add(q0, x) k = MatMul(x, b) v = MatMul(x, c) {ATTENTION}", Notes()
    made = rewritten(of(body), X, attention, linear, lambda made: siblings(made, notes))
    assert kinds(made)[":Linear"] == 2
    assert notes.lines() == ("siblings: queries, keys or values with a residual that is computed",)


def test_a_wrong_offset_is_noticed_by_these_tests() -> None:
    model = of(f"{QKV} {ATTENTION}")
    made = static(model, X)
    for rule in RULES:
        rule(made)
    step = only(made, "Attention")
    step.attributes["k_offset"] = step.attributes["v_offset"]
    assert np.abs(plain(made, X)[0] - run(model, X)[0]).max() > 1e-2
