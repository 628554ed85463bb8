"""The first convolution and its pooling become one step, and what reads an image otherwise stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
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
from vitesse.backends.torch_cuda.rewrite.conv_pools import conv_pools
from vitesse.fusion import clean_model, fuse_model
from vitesse.precision.half_casts import HalfGraph

HALF = {"x": normal(2, 3, 9, 14).astype(np.float16)}
RULES = (conv, conv_pools)
STEM = """
    h = Conv <strides = [2, 2], pads = [3, 3, 3, 3]> (x, w, b) r = Relu(h)
    y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
"""


def of(body: str, kind: str = "float16", ends: str = "", channels: int = 3) -> onnx.ModelProto:
    dtype = np.dtype("float32" if kind == "float" else kind)
    constants = {"w": normal(8, channels, 7, 7, seed=1) / 12, "b": normal(8, seed=2)}
    used = {name: array.astype(dtype) for name, array in constants.items() if f", {name}" in body}
    begin = f"{kind}[N,{channels},9,14] x"
    return graph(body, begin, f"{kind}[N,8,H,W] y" + ends, 18, check=False, **used)


def test_an_image_is_convolved_and_pooled_in_one_step() -> None:
    made = rewritten(of(STEM), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":ConvPool": 1}
    step = only(made, "ConvPool")
    assert given(step) == ["x", "w", "b"]
    assert keywords(step) == {
        **{"strides": (2, 2), "pads": (3, 3, 3, 3), "dilations": (1, 1)},
        **{"activation": "relu", "out_dtype": "float16"},
        **{"window": (3, 3), "window_strides": (2, 2), "window_pads": (1, 1, 1, 1)},
    }


def test_no_bias_no_activation_and_no_pads_are_what_is_left_out() -> None:
    body = "h = Conv(x, w) y = MaxPool <kernel_shape = [2, 2]> (h)"
    made = rewritten(of(body), HALF, *RULES, atol=2e-3)
    step = only(made, "ConvPool")
    assert given(step) == ["x", "w"]
    assert keywords(step)["window_strides"] == (1, 1) and keywords(step)["window_pads"] == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("y = MaxPool", "s = Sigmoid(r) t = ReduceMax <keepdims = 0> (s) p = MaxPool", "two read it"),
        ("strides = [2, 2], pads = [1, 1, 1, 1]>", "strides = [2, 2], ceil_mode = 1>", "rounded up"),
        ("strides = [2, 2], pads = [1, 1, 1, 1]>", "dilations = [2, 2]>", "a window with gaps"),
        ("strides = [2, 2], pads = [1, 1, 1, 1]>", 'auto_pad = "SAME_UPPER">', "pads by name"),
        ("y = MaxPool", "y = AveragePool", "another pooling"),
    ],
    ids=lambda value: value if " " in value and "=" not in value else "",
)
def test_what_is_pooled_otherwise_stays_apart(old: str, new: str, reason: str) -> None:
    body = STEM.replace(old, new)
    if "t = " in body:
        body += "y = Add(p, t)"
    made = static(of(body), HALF)
    apply(made, *RULES)
    assert kinds(made).get(":ConvPool", 0) == 0 and kinds(made)[":Conv"] == 1, reason


def test_float32_and_what_is_no_image_stay_apart() -> None:
    assert kinds(rewritten(of(STEM, "float"), {"x": normal(2, 3, 9, 14)}, *RULES)) == {
        ":Conv": 1,
        "MaxPool": 1,
    }
    wide = {"x": normal(2, 5, 9, 14).astype(np.float16)}
    assert kinds(rewritten(of(STEM, channels=5), wide, *RULES, atol=2e-3)) == {":Conv": 1, "MaxPool": 1}


def test_the_convolution_that_the_caller_reads_stays_apart() -> None:
    made = rewritten(of(STEM, ends=", float16[N,8,H,W] r"), HALF, *RULES, atol=2e-3)
    assert kinds(made) == {":Conv": 1, "MaxPool": 1}


def test_a_trained_network_computes_bit_by_bit_what_it_did() -> None:
    model = HalfGraph(fuse_model(clean_model(onnx.load(DETR)).model).model).written()
    feeds = {model.graph.input[0].name: normal(1, 3, 256, 256)}
    before, made = static(model, feeds), static(model, feeds)
    apply(before, conv)
    apply(made, conv, conv_pools)
    assert kinds(before)["MaxPool"] == 1
    assert kinds(made)[":ConvPool"] == 1 and "MaxPool" not in kinds(made)
    for expected, found in zip(plain(before, feeds), plain(made, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert rewrite(static(model, feeds))[1]["conv_pools"] == 1
