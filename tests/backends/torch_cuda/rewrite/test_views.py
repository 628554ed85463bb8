"""Chains of Reshape and Transpose say the same in fewer operators, and compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import kinds, rewritten
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.views import views

SHAPES: dict[str, Any] = {
    "turned": np.array([1, -1, 8]),
    "flat": np.array([-1, 8]),
    "back": np.array([2, 5, 8]),
    "first": np.array(0),
    "last": np.array([-1]),
}


def left(body: str, inputs: str, outputs: str, x: np.ndarray) -> dict[str, int]:
    """The operators in front of the Neg that reads the result, once nobody reads the others."""
    model = graph(f"{body} y = Neg(v)", inputs, outputs, opset=20, check=False, **SHAPES)
    made = rewritten(model, {"x": x}, views)
    return {kind: times for kind, times in kinds(made).items() if kind != "Neg"}


def test_turning_a_single_token_there_and_back_is_nothing() -> None:
    body = "r = Reshape(x, turned) v = Transpose <perm = [1, 0, 2]> (r)"
    assert left(body, "float[N,1,8] x", "float[N,1,8] y", normal(3, 1, 8)) == {}


def test_a_transposition_that_moves_tokens_stays() -> None:
    found = left("v = Transpose <perm = [1, 0, 2]> (x)", "float[N,5,8] x", "float[5,N,8] y", normal(2, 5, 8))
    assert found == {"Transpose": 1}


def test_a_transposition_and_its_opposite_are_nothing() -> None:
    body = "t = Transpose <perm = [1, 2, 0]> (x) v = Transpose <perm = [2, 0, 1]> (t)"
    assert left(body, "float[N,5,8] x", "float[N,5,8] y", normal(2, 5, 8)) == {}


def test_two_transpositions_are_one() -> None:
    body = "t = Transpose <perm = [1, 2, 0]> (x) v = Transpose <perm = [1, 0, 2]> (t)"
    assert left(body, "float[N,5,8] x", "float[8,5,N] y", normal(2, 5, 8)) == {"Transpose": 1}


def test_a_chain_of_reshapes_is_the_last_one() -> None:
    body = "f = Flatten <axis = 2> (x) u = Reshape(f, back) v = Reshape(u, flat)"
    assert left(body, "float[N,5,8] x", "float[M,8] y", normal(2, 5, 8)) == {"Reshape": 1}


@pytest.mark.parametrize(("place", "shape"), [("first", "float[N,8] y"), ("last", "float[N,1,8] y")])
def test_one_token_is_a_slice_that_copies_nothing(place: str, shape: str) -> None:
    found = left(f"v = Gather <axis = 1> (x, {place})", "float[N,5,8] x", shape, normal(2, 5, 8))
    assert found["Slice"] == 1 and "Gather" not in found


def test_a_view_that_is_an_output_keeps_its_name() -> None:
    model = graph("t = Reshape(x, flat) y = Reshape(t, back)", opset=20, check=False, **SHAPES)
    made = rewritten(model, {"x": normal(2, 5, 8)}, views)
    assert [output.name for output in made.graph.outputs] == ["y"]
