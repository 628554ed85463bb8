"""What exports from JAX leave behind: Einsum with an ellipsis, a pick from a transposed tensor, whole models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import fusing
from fusing import normal
from vitesse.fusion import attention_einsum, clean_model, fuse_model
from vitesse.fusion.picked_index import PICKED_INDEX
from vitesse.fusion.rules import Fusion, apply

EINSUM = Fusion("einsum_to_matmul", attention_einsum.rules())
B, Q, K, H, D = 3, 4, 5, 2, 6


def parse(body: str, inputs: str, output: str) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => ({output}) {{ {body} }}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def fuse(model: ir.Model, fusion: Fusion) -> tuple[int, str]:
    counts, reasons = apply(model, (fusion,))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return counts[fusion.name], " | ".join(reasons[fusion.name])


def run(model: ir.Model, **feeds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return fusing.run(ir.to_proto(model), feeds)[0]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("equation", "left", "right", "result"),
    [
        ("...qhd,...khd->...hqk", (B, Q, H, D), (B, K, H, D), f"b,{H},{Q},{K}"),
        ("...hqk,...khd->...qhd", (B, H, Q, K), (B, K, H, D), f"b,{Q},{H},{D}"),
        ("...qd,...kd->...qk", (B, H, Q, D), (B, H, K, D), f"b,{H},{Q},{K}"),
        ("q...d,k...d->qk...", (Q, B, D), (K, B, D), f"{Q},{K},b"),
        ("...bq,...qk->...bk", (B, H, Q, K), (B, H, K, D), f"b,{H},{Q},{D}"),
    ],
    ids=["scores as flax writes them", "mix", "two axes", "in the middle", "its letters are in use"],
)
def test_the_ellipsis_of_an_einsum_stands_for_batch_axes(
    equation: str, left: tuple[int, ...], right: tuple[int, ...], result: str
) -> None:
    shapes = [",".join("b" if size == B else str(size) for size in shape) for shape in (left, right)]
    model = parse(
        f'y = Einsum<equation="{equation}">(l, r)',
        f"float[{shapes[0]}] l, float[{shapes[1]}] r",
        f"float[{result}] y",
    )
    count, _ = fuse(model, EINSUM)
    assert count == 1 and set(ops(model)) <= {"Transpose", "MatMul"}
    l, r = normal(*left, seed=1), normal(*right, seed=2)  # noqa: E741
    expected = np.einsum(equation, l.astype(np.float64), r.astype(np.float64))
    np.testing.assert_allclose(run(model, l=l, r=r), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "left", "right", "result"),
    [
        ("...qd,kd->...qk", "b,4,6", "5,6", "b,4,5"),
        ("...qd,...kd->...qk", "b,2,4,6", "2,5,6", "b,2,4,5"),
        ("...qd,...kd->qk", "b,4,6", "b,5,6", "4,5"),
    ],
    ids=["one operand has none", "different ranks", "summed away"],
)
def test_an_ellipsis_that_is_not_the_same_axes_everywhere_is_left_alone(
    equation: str, left: str, right: str, result: str
) -> None:
    text = f'y = Einsum<equation="{equation}">(l, r)'
    model = ir.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 18]> g (float[{left}] l, float[{right}] r) '
            f"=> (float[{result}] y) {{ {text} }}"
        )
    )
    counts, reasons = apply(model, (EINSUM,))
    assert counts["einsum_to_matmul"] == 0 and ops(model) == ["Einsum"]
    assert "does not stand for the same axes" in " | ".join(reasons["einsum_to_matmul"])


PICK = "t = Transpose<perm=[{perm}]>(x) i = Constant<value_int={index}>() y = Gather<axis={axis}>(t, i)"


@pytest.mark.parametrize(
    ("perm", "axis", "index", "output"),
    [("1,0,2", 0, 0, "b,6"), ("1,0,2", 0, -1, "b,6"), ("0,2,1", 2, 3, "b,6"), ("2,0,1", -3, 5, "b,5")],
    ids=["the class token", "the last token", "picked behind", "an axis from the right"],
)
def test_one_index_is_picked_before_the_transpose(perm: str, axis: int, index: int, output: str) -> None:
    body = PICK.format(perm=perm, axis=axis, index=index)
    model = parse(body, "float[b,5,6] x", f"float[{output}] y")
    before, x = parse(body, "float[b,5,6] x", f"float[{output}] y"), normal(3, 5, 6)
    count, _ = fuse(model, PICKED_INDEX)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert count == 1 and "Transpose" not in ops(model)
    np.testing.assert_array_equal(run(model, x=x), run(before, x=x))
    order = [int(place) for place in perm.split(",")]
    np.testing.assert_array_equal(run(model, x=x), np.take(x.transpose(order), index, axis=axis))


def test_a_transpose_that_others_read_stays_while_the_pick_moves() -> None:
    body = PICK.format(perm="1,0,2", axis=0, index=2) + " z = Neg(t)"
    model = parse(body, "float[b,5,6] x", "float[b,6] y, float[5,b,6] z")
    x = normal(3, 5, 6)
    count, _ = fuse(model, PICKED_INDEX)
    assert count == 1 and "Transpose" in ops(model)
    picked, rest = fusing.run(ir.to_proto(model), {"x": x})
    np.testing.assert_array_equal(picked, x[:, 2])
    np.testing.assert_array_equal(rest, -x.transpose(1, 0, 2))


def test_a_transpose_that_reorders_what_is_not_picked_stays() -> None:
    model = parse(PICK.format(perm="1,2,0", axis=0, index=0), "float[b,5,6] x", "float[6,b] y")
    count, reasons = fuse(model, PICKED_INDEX)
    assert count == 0 and "also reorders the axes that are not picked" in reasons


def test_a_pick_at_an_index_that_is_fed_stays() -> None:
    model = parse(
        "t = Transpose<perm=[1,0,2]>(x) y = Gather<axis=0>(t, i)", "float[b,5,6] x, int64 i", "float[b,6] y"
    )
    count, reasons = fuse(model, PICKED_INDEX)
    assert count == 0 and "not one constant number" in reasons


SQUEEZED = (
    "s = Constant<value_ints=[{starts}]>() e = Constant<value_ints=[{ends}]>() a = Constant<value_ints=[{axes}]>() "
    "q = Constant<value_ints=[{squeezed}]>() p = Slice(x, s, e, a) y = Squeeze(p, q)"
)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "squeezed", "index"),
    [("0,0,0", "3,1,6", "0,1,2", 1, 0), ("2", "3", "1", -2, 2), ("4,0", "5,99", "-2,-1", 1, 4)],
    ids=["all axes named", "one axis", "axes from the right"],
)
def test_a_slice_of_one_that_is_squeezed_is_a_pick(
    starts: str, ends: str, axes: str, squeezed: int, index: int
) -> None:
    body = SQUEEZED.format(starts=starts, ends=ends, axes=axes, squeezed=squeezed)
    model, x = parse(body, "float[3,5,6] x", "float[3,6] y"), normal(3, 5, 6)
    count, _ = fuse(model, PICKED_INDEX)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert count == 1 and set(ops(model)) == {"Constant", "Gather"}
    np.testing.assert_array_equal(run(model, x=x), x[:, index])


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "inputs", "output"),
    [
        ("0,2", "1,5", "1,2", "float[3,5,6] x", "float[3,3] y"),
        ("-1", "9", "1", "float[3,5,6] x", "float[3,6] y"),
        ("0,0", "3,1", "0,1", "float[b,5,6] x", "float[c,6] y"),
    ],
    ids=["another axis is cut", "from the end", "the batch may be cut"],
)
def test_a_slice_that_is_more_than_a_pick_stays(
    starts: str, ends: str, axes: str, inputs: str, output: str
) -> None:
    model = parse(SQUEEZED.format(starts=starts, ends=ends, axes=axes, squeezed=1), inputs, output)
    count, reasons = fuse(model, PICKED_INDEX)
    assert count == 0 and "also cuts an axis that is not picked, or counts from the end" in reasons


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("interface", ["linen", "nnx"])
def test_a_vit_as_jax2onnx_writes_it_by_default_ends_as_the_operators_of_a_vit(
    interface: str, opset: int
) -> None:
    jax2onnx = pytest.importorskip("jax2onnx", reason="needs the extra jax")
    import tiny_jax

    model, answer = tiny_jax.vit_as_jax2onnx_writes_it(jax2onnx, interface, opset)
    raw = fusing.ops(model)
    assert raw["LayerNormalization"] == 0 and raw["ReduceMean"] == raw["Sub"] == 10 and raw["Max"] == 5
    assert raw["Dropout"] > 0 and raw["Shape"] == 10 and raw["Attention"] == 0
    graph = fuse_model(clean_model(model).model).model
    counts = fusing.ops(graph)
    assert counts == {**counts, "LayerNormalization": 5, "Attention": 2, "Gelu": 2, "MatMul": 12, "Gemm": 1}
    assert not counts.keys() & {"Einsum", "Dropout", "Softmax", "ReduceMean", "Max", "Sqrt", "Tanh", "Erf"}
    assert counts["Shape"] == 1  # of the images, to repeat the class token for each of them
    for batch in (1, 3):
        images = normal(batch, *tiny_jax.SIZE, 3, seed=batch)
        np.testing.assert_allclose(fusing.run(graph, {"images": images})[0], answer(images), atol=1e-4)
