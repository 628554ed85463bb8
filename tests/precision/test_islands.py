"""Which nodes are suspected, and the words that say why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from fusing import graph, normal
from half_graphs import decomposed_layer_norm, feeds, named
from vitesse.precision.activations import observe
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.islands import reasons, unsafe_nodes
from vitesse.recipe import HalfOptions

X = np.ones((1, 5, 8), np.float32)


def _unsafe(
    model: onnx.ModelProto, x: np.ndarray = X, *, number: str = "fp16", headroom: float = 4.0, **more: Any
) -> dict[str, str]:
    ready = HalfGraph(named(model)).float_model
    options = HalfOptions(headroom=headroom)
    return dict(unsafe_nodes(ready, observe(ready, [{"x": x}]), options, number=number, **more))


def test_a_harmless_graph_has_no_suspects():
    assert _unsafe(graph("t = MatMul(x, w) y = Tanh(t)", w=normal(8, 8))) == {}


def test_who_makes_and_who_reads_a_large_value_is_suspected():
    found = _unsafe(graph("t = Mul(x, c) u = Sqrt(t) y = Neg(u)", c=60_000.0), headroom=1.0)
    assert found == {}
    found = _unsafe(graph("t = Mul(x, c) u = Sqrt(t) y = Neg(u)", c=60_000.0))
    assert found == {
        "t": "the output `t` reaches 6e+04; FP16 ends at 65504, and 4 times is kept free",
        "u": "the input `t` reaches 6e+04; FP16 ends at 65504, and 4 times is kept free",
    }
    found = _unsafe(graph("t = Mul(x, c) u = Sqrt(t) y = Neg(u)", c=90_000.0))
    assert found["t"] == "the output `t` reaches 9e+04; FP16 ends at 65504"


def test_a_sum_that_overflows_before_it_is_divided_is_suspected_for_good():
    model = named(graph("y = ReduceMean<axes = [-1]>(x)", outputs="float[N,5,1] y"))
    ready = HalfGraph(model).float_model
    seen = observe(ready, [{"x": np.full((1, 5, 8), 10_000, np.float32)}])
    reason = reasons(ready, seen, HalfOptions())["y"]
    assert reason.text == "the sum inside reaches 8e+04; FP16 ends at 65504" and reason.lasting


@pytest.mark.parametrize(("value", "words"), [(1e-9, "becomes zero"), (2.1e-7, "loses 1"), (1e-3, "")])
def test_a_constant_that_fp16_cannot_hold_is_suspected(value: float, words: str):
    found = _unsafe(graph("y = Add(x, c)", c=value))
    assert (words in found.get("y", "")) if words else not found


@pytest.mark.parametrize("mask", [-np.inf, float(np.finfo(np.float32).min), -1e9])
def test_a_mask_is_no_reason_on_its_way_to_the_softmax(mask: float):
    body = "m = Where(kept, zero, mask) s = Add(x, m) p = Softmax(s) y = Mul(p, x)"
    kept = np.arange(8) < 5
    assert _unsafe(graph(body, kept=kept, zero=0.0, mask=np.float32(mask))) == {}


def test_a_large_positive_value_beside_a_mask_is_a_reason():
    body = "g = Mul(x, c) s = Add(g, mask) y = Softmax(s)"
    mask = np.where(np.arange(8) < 5, 0, -1e9).astype(np.float32)
    assert set(_unsafe(graph(body, c=50_000.0, mask=mask))) == {"g", "s", "y"}


def test_a_bound_beyond_the_range_is_no_reason():
    low, high = np.float32(np.finfo(np.float32).min), np.float32(np.finfo(np.float32).max)
    assert _unsafe(graph("t = Clip(x, low, high) y = Max(t, low)", low=low, high=high)) == {}


def test_values_that_are_all_tiny_are_suspected():
    found = _unsafe(graph("t = Mul(x, c) u = Mul(t, c) y = Div(u, d)", c=1e-3, d=1e-3))
    assert "stays below 1.0e-06, where FP16 loses digits" in found["u"] and "t" not in found


def test_an_epsilon_that_guards_a_division_is_kept_with_all_up_to_the_division():
    ready = HalfGraph(decomposed_layer_norm(1e-12)).float_model
    found = reasons(ready, observe(ready, feeds()), HalfOptions())
    assert {name for name, reason in found.items() if reason.lasting} == {"safe", "deviation", "normalised"}
    ready = HalfGraph(decomposed_layer_norm(1e-5)).float_model
    assert reasons(ready, observe(ready, feeds()), HalfOptions()) == {}


@pytest.mark.parametrize("number", ["fp16", "bf16"])
def test_counting_stays_in_fp32(number: str):
    found = _unsafe(graph("y = CumSum(x, axis)", axis=np.array(1)), number=number)
    assert found == {"y": "CumSum counts or places, which runtimes do in FP32 only"}


def test_bf16_has_the_range_of_float32():
    assert _unsafe(graph("t = Mul(x, c) y = Sqrt(t)", c=1e9), number="bf16") == {}


def test_normalisation_is_kept_where_the_target_asks_for_it():
    model = graph("n = LayerNormalization(x, s) p = Softmax(n) y = Neg(p)", s=np.ones(8, np.float32))
    assert _unsafe(model) == {}
    found = _unsafe(model, normalise_in_fp32=True)
    assert found == {
        "n": "the target must add in FP32 inside LayerNormalization",
        "p": "the target must add in FP32 inside Softmax",
    }


def test_large_scores_of_a_fused_attention_are_suspected():
    shape = "float[1,1,5,8]"
    model = graph("y = Attention<scale = 1.0>(x, x, x)", f"{shape} x", f"{shape} y", opset=23)
    found = _unsafe(model, np.full((1, 1, 5, 8), 60, np.float32))
    assert found == {
        "y": "the largest score in `y/scores` reaches 2.88e+04; FP16 ends at 65504, and 4 times is kept free"
    }
