"""A block's end and the product that the next block begins with become one step, and what else reads them still can."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import (
    apply,
    given,
    keywords,
    kinds,
    only,
    plain,
    rewritten,
    static,
)
from fashion import DETR
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite import rewrite
from vitesse.backends.torch_cuda.rewrite.conv import conv
from vitesse.backends.torch_cuda.rewrite.conv_chains import MOST_FILTERS, conv_chains
from vitesse.backends.torch_cuda.rewrite.conv_pairs import conv_pairs
from vitesse.fusion import clean_model, fuse_model
from vitesse.precision.half_casts import HalfGraph

HALF = {"x": normal(2, 8, 9, 11).astype(np.float16)}
RULES = (conv, conv_pairs, conv_chains)
CONSTANTS = {
    "w": normal(4, 8, 1, 1, seed=1) / 3,
    "v": normal(8, 4, 1, 1, seed=2) / 2,
    "n": normal(4, 8, 1, 1, seed=3) / 3,
    "s": normal(8, 8, 1, 1, seed=4) / 3,
    "b": normal(8, seed=5),
    "e": normal(4, seed=6),
}
# Two blocks without their 3x3 convolutions; the second adds what the first gives.
BLOCKS = """
    h = Conv(x, w) r = Relu(h) c = Conv(r, v, b) a = Add(c, x) f = Relu(a)
    i = Conv(f, n, e) j = Relu(i) k = Conv(j, v) l = Add(k, f) y = Relu(l)
"""


def of(body: str, kind: str = "float16", outputs: str = "", **constants: np.ndarray) -> onnx.ModelProto:
    dtype = np.dtype("float32" if kind == "float" else kind)
    used = {
        name: array.astype(dtype)
        for name, array in {**CONSTANTS, **constants}.items()
        if f", {name})" in body or f", {name}," in body
    }
    ends = f"{kind}[N,M,H,W] y" + outputs
    return graph(body, f"{kind}[N,8,9,11] x", ends, 18, check=False, **used)


def test_the_end_of_a_block_and_the_beginning_of_the_next_are_one_step() -> None:
    made = rewritten(of(BLOCKS), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 2, ":ConvChain": 1}
    step = only(made, "ConvChain")
    assert keywords(step) == {
        "strides": (1, 1),
        "activation": "relu",
        "next_activation": "relu",
        "out_dtype": "float16",
    }
    assert given(step)[1:] == ["v", "b", "n", "e", "x"]
    assert [output.name for output in step.outputs] == ["f", "j"]
    assert [[int(length) for length in output.shape or ()] for output in step.outputs] == [
        [2, 8, 9, 11],
        [2, 4, 9, 11],
    ]


def test_a_shortcut_with_a_stride_and_one_that_strides_behind_it_keep_their_inputs() -> None:
    body = """
        h = Conv <strides = [2, 2]> (x, w) r = Relu(h) c = Conv(r, v, b)
        d = Conv <strides = [2, 2]> (x, s) a = Add(c, d) f = Relu(a)
        i = Conv(f, n, e) j = Relu(i) k = Conv <strides = [2, 2]> (j, v)
        m = Conv <strides = [2, 2]> (f, s) l = Add(k, m) y = Relu(l)
    """
    made = rewritten(of(body), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 3, ":ConvChain": 1}
    step = only(made, "ConvChain")
    assert given(step)[4:] == ["e", None, "x"]
    assert keywords(step)["strides"] == (2, 2)


def test_what_the_caller_reads_is_still_there() -> None:
    ends = ", float16[N,8,9,11] f, float16[N,4,9,11] j"
    made = rewritten(of(BLOCKS, outputs=ends), HALF, *RULES, atol=2e-3)
    assert kinds(made)[":ConvChain"] == 1


def test_the_step_stands_before_all_that_read_the_block() -> None:
    """A reader between the two: the graph would not be sorted any more were the step put in the place of the second."""
    body = BLOCKS.replace("i = Conv(f", "o = Sigmoid(f) i = Conv(f").replace("y = Relu(l)", "y = Add(l, o)")
    made = rewritten(of(body), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 2, ":ConvChain": 1, "Sigmoid": 1, "Add": 1}


def test_chains_follow_each_other() -> None:
    body = BLOCKS.replace("y = Relu(l)", "p = Relu(l) q = Conv(p, n) t = Add(q, j) y = Relu(t)")
    third = body.replace("q = Conv(p, n) t = Add(q, j)", "t = Conv(p, n)")
    made = rewritten(of(third), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 1, ":ConvChain": 2}
    made = rewritten(of(body), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 3, ":ConvChain": 1}, "what adds a residual itself is no beginning"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("c = Conv(r, v, b) a = Add(c, x)", "a = Conv(r, v, b)"), "no residual"),
        (("a = Add(c, x) f = Relu(a)", "g = Relu(c) f = Add(g, x)"), "added behind the activation"),
        (("j = Relu(i)", "o = Conv(f, n) g = Add(i, o) j = Relu(g)"), "two products read it"),
        (("i = Conv(f, n, e)", "u = Relu(f) i = Conv(u, n, e)"), "something lies between"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_chain_stays_apart(change: tuple[str, str], reason: str) -> None:
    body = BLOCKS.replace(*change)
    assert body != BLOCKS
    made = rewritten(of(body), HALF, *RULES, atol=2e-3)
    assert kinds(made)[":ConvChain"] == 0, reason


def test_a_beginning_of_more_taps_or_with_a_stride_or_too_wide_stays_a_step() -> None:
    taps = BLOCKS.replace("i = Conv(f, n, e)", "i = Conv <pads = [1, 1, 1, 1]> (f, n, e)")
    made = rewritten(of(taps, n=normal(4, 8, 3, 3, seed=3) / 9), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 4}
    ends = "h = Conv(x, w) r = Relu(h) c = Conv(r, v, b) a = Add(c, x) f = Relu(a) "
    strided = ends + "y = Conv <strides = [2, 2]> (f, n, e)"
    assert kinds(rewritten(of(strided), HALF, *RULES, atol=2e-3)) == {":Conv": 3}
    for filters, chains in ((MOST_FILTERS, 1), (MOST_FILTERS + 1, 0)):
        model = of(ends + "y = Conv(f, n)", n=normal(filters, 8, 1, 1, seed=3) / 3)
        assert kinds(rewritten(model, HALF, *RULES, atol=2e-3))[":ConvChain"] == chains


def test_what_is_written_in_e4m3_stays_apart() -> None:
    """Of either convolution; the others of the graph read 16 bits."""
    for value in ("f", "j"):
        made = static(of(BLOCKS), HALF)
        apply(made, conv, conv_pairs)
        (written,) = (node.outputs[0] for node in made.graph if node.outputs[0].name == value)
        written.type = ir.TensorType(ir.DataType.FLOAT8E4M3FN)
        assert conv_chains(made) == 0


def test_float32_is_left_to_the_libraries() -> None:
    made = rewritten(of(BLOCKS, "float"), {"x": normal(2, 8, 9, 11)}, *RULES)
    assert kinds(made) == {":Conv": 4}


def test_a_trained_residual_network_computes_bit_by_bit_what_it_did() -> None:
    model = HalfGraph(fuse_model(clean_model(onnx.load(DETR)).model).model).written()
    feeds = {model.graph.input[0].name: normal(1, 3, 256, 256)}
    before, made = static(model, feeds), static(model, feeds)
    apply(before, conv, conv_pairs)
    apply(made, conv, conv_pairs, conv_chains)
    assert (kinds(before)[":Conv"], kinds(before)[":ConvPair"]) == (22, 4)
    # 8 blocks, the last of which the projection to the encoder reads; 3 of them with a shortcut that has a stride.
    assert (kinds(made)[":Conv"], kinds(made)[":ConvPair"], kinds(made)[":ConvChain"]) == (10, 0, 8)
    for expected, found in zip(plain(before, feeds), plain(made, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert rewrite(static(model, feeds))[1]["conv_chains"] == 8
