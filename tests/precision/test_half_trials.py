"""Measured error: what is compared, that choices are held, and that a wrong number cannot hide."""

from __future__ import annotations

import math

import numpy as np

from fusing import graph, normal
from half_graphs import named
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.half_trials import Trials

EYE = np.eye(8, dtype=np.float32)
CHOOSING = """
    t = MatMul(x, w)
    values, places = TopK<axis = -1>(t, three)
    chosen = GatherElements<axis = -1>(features, places)
    y = Neg(chosen)
"""


def _choosing() -> HalfGraph:
    outputs = "float[1,5,3] y, float[1,5,3] values, int64[1,5,3] places"
    model = graph(CHOOSING, "float[1,5,8] x, float[1,5,8] features", outputs, w=EYE, three=np.array([3]))
    return HalfGraph(named(model))


def test_the_error_is_the_relative_norm_of_the_difference():
    model = HalfGraph(named(graph("y = Mul(x, c)", c=np.float32(1 / 3))))
    x = normal(1, 5, 8)
    exact = (x * np.float32(1 / 3)).astype(np.float64)
    half = (x.astype(np.float16).astype(np.float32) * np.float32(np.float16(1 / 3))).astype(np.float16)
    expected = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    found = Trials(model, [{"x": x}]).loss(()).by_tensor
    assert found.keys() == {"y"} and math.isclose(found["y"], expected, rel_tol=1e-6)


def test_a_near_tie_that_falls_otherwise_is_no_error():
    x = np.ones((1, 5, 8), np.float32) + 1e-5 * np.arange(8, dtype=np.float32)  # all equal in FP16
    features = normal(1, 5, 8)
    trials = Trials(_choosing(), [{"x": x, "features": features}])
    assert np.array_equal(x.astype(np.float16), np.ones_like(x))
    assert trials.loss(()).by_tensor.keys() == {"y", "values", "t"}
    assert trials.loss(()).worst < 1e-3


def test_wrong_numbers_behind_a_choice_are_an_error_all_the_same():
    features = 1e5 * normal(1, 5, 8)
    trials = Trials(_choosing(), [{"x": normal(1, 5, 8), "features": features}])
    assert trials.loss(()).by_tensor["y"] == math.inf
    assert trials.loss(()).by_tensor["t"] < 1e-3


def test_an_overflow_in_one_of_many_values_is_infinitely_wrong():
    x = np.ones((1, 5, 8), np.float32)
    x[0, 2, 3] = 300
    model = HalfGraph(named(graph("s = Mul(x, x) y = Neg(s)")))
    assert Trials(model, [{"x": x}]).loss(()).worst == math.inf
    assert Trials(model, [{"x": x}]).loss(("s", "y")).worst < 1e-3


def test_what_float32_masks_is_not_compared():
    mask = np.where(np.arange(8) < 5, 0, -np.inf).astype(np.float32)
    model = HalfGraph(named(graph("y = Add(x, mask)", mask=mask)))
    assert Trials(model, [{"x": normal(1, 5, 8)}]).loss(()).worst < 1e-3


def test_headroom_lets_overflow_what_comes_near():
    model = HalfGraph(named(graph("s = Mul(x, c) y = Sqrt(s)", c=30_000.0)))
    feed = {"x": np.ones((1, 5, 8), np.float32)}
    assert Trials(model, [feed]).loss(()).worst < 1e-3
    assert Trials(model, [feed], headroom=4).loss(()).worst == math.inf


def test_a_set_is_run_once():
    trials = Trials(HalfGraph(named(graph("s = Neg(x) y = Neg(s)"))), [{"x": normal(1, 5, 8)}], most=5)
    first = trials.loss(("s",))
    assert trials.loss(frozenset({"s"})) is first and trials.left == 4
