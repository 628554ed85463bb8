"""A block's end and its shortcut become one step where both are products in 16 bits, and stay two elsewhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, rewritten
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.conv import conv
from vitesse.backends.torch_cuda.rewrite.conv_pairs import conv_pairs

HALF = {"x": normal(2, 8, 9, 11).astype(np.float16)}
W, S, V = (
    normal(4, 8, 1, 1, seed=1) / 3,
    normal(6, 8, 1, 1, seed=2) / 3,
    normal(6, 4, 1, 1, seed=3) / 2,
)
BLOCK = """
    h = Conv <strides = [2, 2]> (x, w) r = Relu(h) c = Conv(r, v, b)
    d = Conv <strides = [2, 2]> (x, s, e)
    a = Add(c, d) y = Relu(a)
"""


def of(body: str, kind: str = "float16", outputs: str = "", **constants: np.ndarray) -> onnx.ModelProto:
    dtype = np.dtype("float32" if kind == "float" else kind)
    arrays = {
        **{"w": W, "s": S, "v": V, "b": normal(6, seed=4), "e": normal(6, seed=5)},
        **constants,
    }
    used = {
        name: array.astype(dtype)
        for name, array in arrays.items()
        if f"{name})" in body or f"{name}," in body
    }
    ends = f"{kind}[N,M,H,W] y" + outputs
    return graph(body, f"{kind}[N,8,9,11] x", ends, 18, check=False, **used)


def test_the_shortcut_and_the_end_of_a_block_are_one_step() -> None:
    made = rewritten(of(BLOCK), HALF, conv, conv_pairs, atol=2e-3)
    assert kinds(made) == {":Conv": 1, ":ConvPair": 1}
    step = only(made, "ConvPair")
    assert keywords(step) == {"strides": (2, 2), "activation": "relu", "out_dtype": "float16"}
    assert given(step)[1] == "x"
    assert [int(length) for length in step.inputs[2].shape] == [6, 12, 1, 1]


def test_without_a_stride_either_may_be_the_shortcut() -> None:
    body = BLOCK.replace("<strides = [2, 2]>", "")
    made = rewritten(of(body), HALF, conv, conv_pairs, atol=2e-3)
    assert kinds(made) == {":Conv": 1, ":ConvPair": 1}


@pytest.mark.parametrize("biases", ["(r, v, b) (x, s)", "(r, v) (x, s, e)", "(r, v) (x, s)"])
def test_biases_are_added_where_there_are_any(biases: str) -> None:
    first, second = biases.split(") (")
    body = BLOCK.replace("(r, v, b)", f"{first})").replace("(x, s, e)", f"({second}")
    made = rewritten(of(body), HALF, conv, conv_pairs, atol=2e-3)
    assert kinds(made)[":ConvPair"] == 1
    assert len(only(made, "ConvPair").inputs) == 4 - (
        "b" not in body.split("Conv(r")[1] and ", e" not in body
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("d = Conv <strides = [2, 2]> (x, s, e)", "f = Conv <strides = [2, 2]> (x, s, e) d = Relu(f)"),
            "activated",
        ),
        (("y = Relu(a)", "t = Relu(a) y = Add(t, d)"), "read twice"),
        (("a = Add(c, d) y = Relu(a)", "q = Relu(c) y = Add(q, d)"), "added behind the activation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sum_of_two_products_stays_two_steps(change: tuple[str, str], reason: str) -> None:
    made = rewritten(of(BLOCK.replace(*change)), HALF, conv, conv_pairs, atol=2e-3)
    assert kinds(made)[":ConvPair"] == 0, reason


def test_a_shortcut_of_more_taps_stays_a_step() -> None:
    body = BLOCK.replace("<strides = [2, 2]> (x, s, e)", "<strides = [2, 2], pads = [1, 1, 1, 1]> (x, s, e)")
    made = rewritten(of(body, s=normal(6, 8, 3, 3, seed=2) / 9), HALF, conv, conv_pairs, atol=2e-3)
    assert kinds(made) == {":Conv": 3}


def test_float32_is_left_to_the_libraries() -> None:
    feeds = {"x": normal(2, 8, 9, 11)}
    made = rewritten(of(BLOCK, "float"), feeds, conv, conv_pairs)
    assert kinds(made) == {":Conv": 3}
