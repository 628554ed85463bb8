"""Layers between FP8 pairs read and write E4M3 at the very places where the file rounds; other pairs stay."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

import torch

from backends.torch_cuda.rewrite.static_graphs import apply, given, keywords, kinds, only, rewritten, static
from fashion import DETR, VIT
from fusing import Arrays, graph, normal
from quantising import quantised as in_pairs
from vitesse.backends.torch_cuda.operators import operator_of
from vitesse.backends.torch_cuda.operators.constants import to_torch
from vitesse.backends.torch_cuda.rewrite.attention import attention
from vitesse.backends.torch_cuda.rewrite.conv import conv
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.norm import norm
from vitesse.backends.torch_cuda.rewrite.patches import patches
from vitesse.backends.torch_cuda.rewrite.quantised import (
    left_alone,
    quantise,
    quantise_outputs,
    quantised,
)
from vitesse.backends.torch_cuda.steps import E4M3
from vitesse.fusion import clean_model, fuse_model
from vitesse.precision.fp8 import NUMBER, to_e4m3
from vitesse.precision.half_quantised import half_quantised
from vitesse.precision.layers import layers_of
from vitesse.recipe import HalfOptions

X = {"x": normal(3, 5, 8)}
ZERO = np.zeros((), NUMBER)
ALL = (quantised, patches, conv, attention, linear, norm, quantise_outputs)
Q, DQ = "q = QuantizeLinear(x, sx, z)", "d = DequantizeLinear(q, sx, z)"


def e4m3(*shape: int, seed: int = 1) -> NDArray[Any]:
    return to_e4m3(100 * normal(*shape, seed=seed))


def numbers(**more: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Scales by channel and by tensor, a weight, zero points; `more` adds and replaces."""
    return {
        "sx": np.float32(0.011),
        "sy": np.float32(0.02),
        "z": ZERO,
        "w": e4m3(8, 8),
        "sw": np.float32(0.001) * np.arange(1, 9, dtype=np.float32),
        "zw": np.zeros(8, NUMBER),
        **more,
    }


def of(
    body: str, outputs: str = "float[N,5,8] y", inputs: str = "float[N,5,8] x", **more: NDArray[Any]
) -> onnx.ModelProto:
    names = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    constants = {name: array for name, array in numbers(**more).items() if name in names}
    return graph(body, inputs, outputs, opset=23, check=False, **constants)


def weight(axis: int = 1, name: str = "e") -> str:
    return f"{name} = DequantizeLinear <axis = {axis}> (w, sw, zw)"


# --- what reads E4M3


@pytest.mark.parametrize(
    ("body", "more", "scales"),
    [
        (f"{weight()} y = MatMul(d, e)", {}, 8),
        ("e = DequantizeLinear(w, s1, z) y = MatMul(d, e)", {"s1": np.float32(0.003)}, 1),
        (f"{weight(-1)} y = MatMul(d, e)", {}, 8),
        (f"{weight(0)} t = Transpose <perm = [1, 0]> (e) y = MatMul(d, t)", {}, 8),
    ],
    ids=["by channel", "by tensor", "axis from the end", "weight transposed"],
)
def test_a_product_of_dequantised_tensors_becomes_a_linear_on_e4m3(
    body: str, more: Arrays, scales: int
) -> None:
    made = rewritten(of(f"{Q} {DQ} {body}", **more), X, quantised)
    step = only(made, "Linear")
    assert kinds(made)[":Linear"] == 1 and not kinds(made)["MatMul"]
    assert [value.dtype for value in step.inputs[:3] if value] == [
        *[ir.DataType.FLOAT8E4M3FN] * 2,
        ir.DataType.FLOAT,
    ]
    assert step.inputs[2] is not None and list(step.inputs[2].shape or ()) == [scales]
    assert left_alone(made) == ()


def test_a_gemm_folds_its_factors_and_keeps_its_bias() -> None:
    flat = {"x": normal(5, 8)}
    body = f"{Q} {DQ} {weight(0)} y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (d, e, b)"
    more = {"w": e4m3(8, 8), "b": normal(8, seed=4)}
    made = rewritten(of(body, "float[5,8] y", "float[5,8] x", **more), flat, quantised)
    step = only(made, "Linear")
    assert step.inputs[3] is not None and step.inputs[3].const_value is not None
    np.testing.assert_array_equal(step.inputs[3].const_value.numpy(), 2 * more["b"])


def test_a_convolution_becomes_a_step_on_e4m3_and_takes_in_what_follows() -> None:
    images = {"x": normal(2, 8, 5, 7)}
    body = f"{Q} {DQ} {weight(0)} c = Conv <strides = [2, 1], pads = [1, 1, 1, 1]> (d, e, b) y = Relu(c)"
    more = {"w": e4m3(8, 8, 3, 3), "b": normal(8, seed=4)}
    made = rewritten(of(body, "float[2,8,3,7] y", "float[2,8,5,7] x", **more), images, quantised, conv)
    step = only(made, "Conv")
    assert kinds(made) == {"QuantizeLinear": 1, ":Conv": 1}
    assert keywords(step)["strides"] == (2, 1) and keywords(step)["activation"] == "relu"
    assert given(step)[1] == "w" and given(step)[3] == "b"


def test_batch_normalisation_behind_e4m3_numbers_goes_into_the_scales() -> None:
    images = {"x": normal(2, 8, 5, 7)}
    body = f"{Q} {DQ} {weight(0)} c = Conv(d, e) y = BatchNormalization(c, g, b, m, v)"
    more = {"w": e4m3(8, 8, 1, 1), **{name: normal(8, seed=at) for at, name in enumerate("gbm")}}
    more["v"] = np.square(normal(8, seed=9))
    made = rewritten(of(body, "float[2,8,5,7] y", "float[2,8,5,7] x", **more), images, quantised, conv)
    assert kinds(made) == {"QuantizeLinear": 1, ":Conv": 1} and given(only(made, "Conv"))[1] == "w"


def test_scales_that_stayed_in_fp32_between_casts_are_read_as_well() -> None:
    half = {"x": X["x"].astype(np.float16)}
    body = (
        "h = Cast <to = 1> (x) q = QuantizeLinear(h, sx, z) f = DequantizeLinear(q, sx, z) d = Cast <to = 10> (f) "
        f"{weight(name='g')} e = Cast <to = 10> (g) y = MatMul(d, e)"
    )
    made = rewritten(of(body, "float16[N,5,8] y", "float16[N,5,8] x"), half, quantised, atol=2e-3)
    assert keywords(only(made, "Linear"))["out_dtype"] == "float16"


def test_equal_quantisers_of_one_tensor_become_one() -> None:
    pair = "{0} = QuantizeLinear(x, {1}, z) d{0} = DequantizeLinear({0}, {1}, z) m{0} = MatMul(d{0}, e) "
    body = (
        weight()
        + pair.format("a", "sx")
        + pair.format("b", "s2")
        + pair.format("c", "sy")
        + " n = Add(ma, mb) y = Add(n, mc)"
    )
    made = rewritten(of(body, s2=np.float32(0.011)), X, quantised)
    assert kinds(made)["QuantizeLinear"] == 2 and kinds(made)[":Linear"] == 3


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        (f"{Q} {DQ} {weight(0)} y = MatMul(d, e)", {}, "scales by input channel"),
        (f"{weight()} y = MatMul(x, e)", {}, "only one input of a layer is quantised"),
        (f"{Q} {DQ} y = MatMul(d, f)", {"f": normal(8, 8)}, "only one input of a layer is quantised"),
        (
            f"{Q} {DQ} t = Transpose <perm = [0, 2, 1]> (d) r = MatMul(d, t) {weight()} y = MatMul(r, f)",
            {"f": normal(5, 8)},
            "two computed tensors are multiplied",
        ),
        (f"{Q} {DQ} {weight()} y = MatMul(d, e)", {"zw": np.ones(8, NUMBER)}, "a zero point other than 0"),
        (
            "q = QuantizeLinear <axis = 2> (x, sw, zw) d = DequantizeLinear <axis = 2> (q, sw, zw) "
            f"{weight()} y = MatMul(d, e)",
            {},
            "scales by channel, not one for the tensor",
        ),
        (
            f"{Q} {DQ} {weight()} y = MatMul(d, e)",
            {"z": np.int8(0), "zw": np.zeros(8, np.int8), "w": np.arange(64, dtype=np.int8).reshape(8, 8)},
            "INT8 products were measured slower than FP16",
        ),
        (
            f"{Q} {DQ} {weight()} y = MatMul(d, e)",
            {"z": np.uint8(120), "zw": np.zeros(8, np.int8), "w": np.arange(64, dtype=np.int8).reshape(8, 8)},
            "INT8 products were measured slower than FP16",
        ),
    ],
)  # fmt: skip
def test_what_is_no_product_of_e4m3_numbers_is_left_alone_with_the_reason(
    body: str, more: Arrays, reason: str
) -> None:
    model = of(body, **more)
    if "zero point" in reason:  # ONNX Runtime refuses it itself
        made = static(model, X)
        assert quantised(made) == 0
    else:
        made = rewritten(model, X, quantised)
    assert not kinds(made)[":Linear"]
    assert len(left_alone(made)) == 1 and reason in left_alone(made)[0]


# --- what writes E4M3

LAYER = f"{Q} {DQ} {weight()} m = MatMul(d, e) a = Add(m, b) h = Relu(a)"
NEXT = "p = QuantizeLinear(h, sy, z) r = DequantizeLinear(p, sy, z)"
AGAIN = f"{weight(name='i')} y = MatMul(r, i)"
BIAS = {"b": normal(8, seed=4)}


def test_a_layer_writes_what_only_the_next_quantiser_reads() -> None:
    made = rewritten(of(f"{LAYER} {NEXT} {AGAIN}", **BIAS), X, *ALL)
    assert kinds(made) == {"QuantizeLinear": 1, ":Linear": 2}
    first = next(node for node in made.graph if node.op_type == "Linear")
    assert keywords(first)["activation"] == "relu"
    assert keywords(first)["out_scale"] == pytest.approx(0.02)
    assert first.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN


def test_a_layer_that_is_also_read_in_full_is_quantised_behind() -> None:
    body = f"{LAYER} {NEXT} {weight(name='i')} n = MatMul(r, i) y = Add(n, h)"
    made = rewritten(of(body, **BIAS), X, *ALL)
    assert kinds(made) == {"QuantizeLinear": 2, ":Linear": 2}
    assert not any(keywords(node).get("out_scale") for node in made.graph if node.op_type == "Linear")


def test_an_output_of_the_graph_is_not_turned_into_e4m3() -> None:
    made = rewritten(of(f"{LAYER} {NEXT} {AGAIN}", "float[N,5,8] y, float[N,5,8] h", **BIAS), X, *ALL)
    assert kinds(made)["QuantizeLinear"] == 2


SUM = (
    "a = Add(%s) q = QuantizeLinear(a, sx, z) d = DequantizeLinear(q, sx, z) e = DequantizeLinear(w, sw, zw) "
)


@pytest.mark.parametrize("order", ["x, p", "p, x"])
@pytest.mark.parametrize("shape", [(5, 8), (1, 5, 8), (8,), (3, 5, 8)])
def test_a_quantiser_that_is_left_is_a_step_with_the_sum_before_it(
    order: str, shape: tuple[int, ...]
) -> None:
    made = rewritten(of(SUM % order + "y = MatMul(d, e)", p=normal(*shape, seed=9)), X, *ALL, quantise)
    assert kinds(made) == {":Quantise": 1, ":Linear": 1}
    # Of equal shapes either may be the first.
    assert given(only(made, "Quantise")) == (
        ["x", "p"] if len(shape) < 3 or shape[0] == 1 else order.split(", ")
    )
    assert keywords(only(made, "Quantise"))["out_scale"] == pytest.approx(0.011)


def test_a_sum_that_is_read_elsewhere_or_of_another_shape_is_added_before() -> None:
    body = SUM % "x, p" + "m = MatMul(d, e) y = Add(m, a)"
    made = rewritten(of(body, p=normal(8, seed=9)), X, *ALL, quantise)
    assert kinds(made)[":Quantise"] == 1 and kinds(made)["Add"] == 1
    made = rewritten(of(SUM % "x, p" + "y = MatMul(d, e)", p=normal(5, 1, seed=9)), X, *ALL, quantise)
    assert kinds(made) == {"Add": 1, ":Quantise": 1, ":Linear": 1}


def test_an_operator_between_a_layer_and_its_quantiser_keeps_them_apart() -> None:
    body = f"{LAYER.replace('h = Relu', 'k = Relu')} h = Tanh(k) {NEXT} {AGAIN}"
    assert kinds(rewritten(of(body, **BIAS), X, *ALL))["QuantizeLinear"] == 2


def test_numbers_are_moved_as_e4m3() -> None:
    moved = "k = Reshape(f, s) h = Transpose <perm = [0, 2, 1]> (k)"
    body = f"{LAYER.replace('h = Relu', 'f = Relu')} {moved} {NEXT} i = DequantizeLinear(v, s1, z) y = MatMul(r, i)"
    more = {**BIAS, "s": np.array([3, 4, 10]), "v": e4m3(4, 3), "s1": np.float32(0.004)}
    made = rewritten(of(body, "float[3,10,3] y", **more), X, *ALL)
    assert kinds(made) == {"QuantizeLinear": 1, ":Linear": 2, "Reshape": 1, "Transpose": 1}
    assert {node.outputs[0].dtype for node in made.graph if node.op_type in ("Reshape", "Transpose")} == {
        ir.DataType.FLOAT8E4M3FN
    }


NORM = "h = LayerNormalization(x, g, b) p = QuantizeLinear(h, sy, z) r = DequantizeLinear(p, sy, z)"
GAINS = {"g": normal(8, seed=3), "b": normal(8, seed=4)}


def test_a_norm_writes_e4m3_alone_where_nothing_else_is_read() -> None:
    made = rewritten(of(f"{NORM} {AGAIN}", **GAINS), X, *ALL)
    assert kinds(made) == {":Norm": 1, ":Linear": 1}
    assert [bool(value.name) for value in only(made, "Norm").outputs] == [False, False, True]
    assert given(only(made, "Linear"))[0] == only(made, "Norm").outputs[2].name


def test_a_norm_writes_e4m3_beside_what_others_read() -> None:
    made = rewritten(of(f"{NORM} {weight(name='i')} n = MatMul(r, i) y = Add(n, h)", **GAINS), X, *ALL)
    assert kinds(made) == {":Norm": 1, ":Linear": 1}
    assert [bool(value.name) for value in only(made, "Norm").outputs] == [True, False, True]


def test_a_norm_writes_one_e4m3_and_a_quantiser_the_other() -> None:
    other = "t = QuantizeLinear(h, s2, z) u = DequantizeLinear(t, s2, z)"
    body = f"{NORM} {other} {weight(name='i')} n = MatMul(r, i) o = MatMul(u, i) y = Add(n, o)"
    made = rewritten(of(body, s2=np.float32(0.03), **GAINS), X, *ALL)
    assert kinds(made) == {":Norm": 1, ":Linear": 2, "QuantizeLinear": 1}


def test_attention_writes_e4m3() -> None:
    body = f"h = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x) {NEXT} {AGAIN}"
    made = rewritten(of(body), X, *ALL)
    assert kinds(made) == {":Attention": 1, ":Linear": 1}
    assert keywords(only(made, "Attention"))["out_scale"] == pytest.approx(0.02)


# --- whole models, node by node: given what the file's own graph computed, every step makes what the file's graph made


@cache
def in_fp8(path: Path) -> onnx.ModelProto:
    """A trained model fused and with FP8 pairs round its layers, which reach as far as one image needs."""
    model = fuse_model(clean_model(onnx.load(path)).model).model
    found = computed(ir.from_proto(model), image(model))
    read = {layer.activation for layer in layers_of(model)}
    reach = {name: float(found[name].abs().max()) for name in read}
    with TemporaryDirectory() as folder:
        return in_pairs(
            Path(folder), model, {name: (-far, far) for name, far in reach.items()}, number="fp8"
        )[0]


def image(model: onnx.ModelProto) -> Arrays:
    """A smooth image: each of its 8 x 8 blocks has one colour."""
    size = [dim.dim_value // 8 for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    return {"images": np.kron(normal(1, 3, *size), np.ones((1, 1, 8, 8), np.float32))}


def computed(made: ir.Model, feeds: Arrays) -> dict[str, Any]:
    """Every tensor of a graph by name."""
    found = {name: torch.from_numpy(array) for name, array in feeds.items()}
    for node in made.graph:
        outputs = results(node, found)
        found.update(
            {value.name: tensor for value, tensor in zip(node.outputs, outputs, strict=False) if value.name}
        )
    return found


def results(node: ir.Node, found: dict[str, Any]) -> tuple[Any, ...]:
    """What a node makes of tensors by name, and of constants."""
    return tuple(operator_of(node)(node, [tensor_of(value, found) for value in node.inputs]))


def tensor_of(value: ir.Value | None, found: dict[str, Any]) -> Any:
    if value is None or not value.name:
        return None
    return to_torch(value.const_value) if value.const_value is not None else found[value.name]


def expected_of(value: ir.Value, found: dict[str, Any], stored: dict[str, str]) -> Any:
    """What the file's graph has for a tensor of the rewritten one: for E4M3 what the quantiser behind it stores."""
    name = (value.name or "").removesuffix("_e4m3")
    return found[stored.get(name, name) if value.dtype == ir.DataType.FLOAT8E4M3FN else name]


def agree(found: Any, expected: Any, *, half: bool) -> bool:
    """Equal within rounding, which may push a few E4M3 numbers over an edge.

    FP16 rounds every sum that the file's graph writes, so that small results of large summands are off by more.
    """
    one, other = found.double(), expected.double()
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    apart, rounding = (one - other).abs(), (4e-3 if half else 1e-5) * other.abs().max()
    if found.dtype is not E4M3:
        return bool(apart.max() <= rounding)
    step = torch.maximum(one.abs(), other.abs()).clamp(min=2.0**-6) / 8
    return bool((apart <= step + rounding).all() and (apart > 0).double().mean() < (0.03 if half else 1e-3))


@pytest.mark.parametrize("half", [False, True], ids=["FP32 beside", "FP16 beside"])
@pytest.mark.parametrize(("path", "left"), [(VIT, 7), (DETR, 34)], ids=["ViT", "DETR"])
def test_every_step_of_a_whole_model_rounds_where_the_file_rounds(path: Path, left: int, half: bool) -> None:
    model = half_quantised(in_fp8(path), (), HalfOptions())[0] if half else in_fp8(path)
    feeds = image(model)
    made = static(model, feeds)
    found = computed(made, feeds)
    quantisers = [node for node in made.graph if node.op_type == "QuantizeLinear"]
    stored = {node.inputs[0].name: node.outputs[0].name for node in quantisers if node.inputs[0]}
    layers = sum(node.op_type in ("MatMul", "Conv", "Gemm") for node in made.graph)
    apply(made, *ALL)
    wrong = []
    for node in made.graph:
        read = [value for value in node.inputs if value and value.name and value.const_value is None]
        given_there = {value.name or "": expected_of(value, found, stored) for value in read}
        for value, tensor in zip(node.outputs, results(node, given_there), strict=False):
            if value.name and not agree(tensor, expected_of(value, found, stored), half=half):
                wrong.append(f"{node.op_type} {value.name}")
    assert not wrong
    assert kinds(made)[":Linear"] + kinds(made)[":Conv"] + kinds(made)[":Patches"] == layers
    assert kinds(made)["QuantizeLinear"] <= left < len(quantisers) and not left_alone(made)
