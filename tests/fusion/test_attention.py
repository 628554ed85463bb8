"""Attention fusions on hand-built graphs, against float64 numpy and with the runtime's own optimiser off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

import fusing
from vitesse.fusion.attention import ATTENTION_FUSIONS
from vitesse.fusion.rules import apply

B, H, N, M, D = 2, 3, 5, 7, 6
E = H * D
RNG = np.random.default_rng(0)
Feeds = dict[str, np.ndarray[Any, Any]]


def parse(body: str, inputs: str, outputs: str = "float[b,n,e] y", opset: int = 17) -> ir.Model:
    """A model from ONNX text syntax."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def run(model: ir.Model, feeds: Feeds) -> np.ndarray[Any, Any]:
    """First output, computed by ONNX Runtime without its own optimiser."""
    return fusing.run(ir.to_proto(model), feeds)[0]


def fused(model: ir.Model) -> tuple[dict[str, int], str]:
    """Apply the fusions in place; counts, and all reasons in one text."""
    counts, reasons = apply(model, ATTENTION_FUSIONS)
    RemoveUnusedNodesPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return counts, " | ".join(reason for texts in reasons.values() for reason in texts)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def attention64(q: Any, k: Any, v: Any, scale: float = D**-0.5, mask: Any = 0.0) -> np.ndarray[Any, Any]:
    """Equation 1 of Vaswani et al. on (…, tokens, width) in float64."""
    scores = scale * q.astype(np.float64) @ np.swapaxes(k.astype(np.float64), -1, -2) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64))


def heads(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.reshape(x.shape[0], x.shape[1], H, D).swapaxes(1, 2)


def merged(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], E)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


QKV = {"q": normal(B, H, N, D), "k": normal(B, H, M, D), "v": normal(B, H, M, D)}
FOUR_AXES = f"float[b,{H},{N},{D}] q, float[b,{H},{M},{D}] k, float[b,{H},{M},{D}] v"
OUT4 = f"float[b,{H},{N},{D}] y"
SCORES = "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) "
TAIL = "w = Softmax<axis=-1>(z) y = MatMul(w, v)"

SCALED = {
    "not scaled": (SCORES.replace("s =", "z =") + TAIL, 1.0),
    "scores times": (SCORES + "c = Constant<value_float=0.3>() z = Mul(s, c) " + TAIL, 0.3),
    "times scores": (SCORES + "c = Constant<value_float=0.3>() z = Mul(c, s) " + TAIL, 0.3),
    "scores divided": (SCORES + "c = Constant<value_float=4.0>() z = Div(s, c) " + TAIL, 0.25),
    "query times": (
        "c = Constant<value_float=0.3>() qs = Mul(q, c) kt = Transpose<perm=[0,1,3,2]>(k) z = MatMul(qs, kt) "
        + TAIL,
        0.3,
    ),
    "both times a root": (
        "c = Constant<value_floats=[0.5]>() qs = Mul(q, c) kt = Transpose<perm=[0,1,3,2]>(k) "
        "ks = Mul(kt, c) z = MatMul(qs, ks) " + TAIL,
        0.25,
    ),
    "NaN rows cleared": (
        SCORES.replace("s =", "z =")
        + "w = Softmax<axis=3>(z) i = IsNaN(w) o = Constant<value_float=0.0>() u = Where(i, o, w) y = MatMul(u, v)",
        1.0,
    ),
}


@pytest.mark.parametrize("spelling", SCALED)
def test_written_out_attention_becomes_one_operator(spelling: str) -> None:
    body, scale = SCALED[spelling]
    model = parse(body, FOUR_AXES, OUT4)
    counts, _ = fused(model)
    assert counts["attention"] == 1
    assert ops(model) == ["Attention"] and model.opset_imports[""] == 23
    expected = attention64(QKV["q"], QKV["k"], QKV["v"], scale)
    np.testing.assert_allclose(run(model, QKV), expected, atol=2e-6)


MASKS = {
    "full": ((B, H, N, M), "Add(s, m)"),
    "mask first": ((B, 1, N, M), "Add(m, s)"),
    "of keys only": ((B, 1, 1, M), "Add(s, m)"),
    "two axes": ((N, M), "Add(s, m)"),
    "three axes": ((H, 1, M), "Add(s, m)"),
    "one axis": ((M,), "Add(s, m)"),
}


@pytest.mark.parametrize("queries", [str(N), "n"])
@pytest.mark.parametrize("kind", MASKS)
def test_additive_masks_of_any_shape_are_kept(kind: str, queries: str) -> None:
    shape, add = MASKS[kind]
    inputs = FOUR_AXES.replace(str(N), queries, 1) + f", float[{','.join(map(str, shape))}] m"
    model = parse(f"{SCORES} z = {add} {TAIL}", inputs, OUT4.replace(str(N), queries))
    mask = normal(*shape)
    counts, _ = fused(model)
    assert counts["attention"] == 1 and "Softmax" not in ops(model)
    expected = attention64(QKV["q"], QKV["k"], QKV["v"], 1.0, mask.astype(np.float64))
    np.testing.assert_allclose(run(model, {**QKV, "m": mask}), expected, atol=3e-6)


@pytest.mark.parametrize(("where", "hide"), [("Where(m, f, s)", True), ("Where(m, s, f)", False)])
def test_scores_filled_with_a_large_negative_number_become_a_boolean_mask(where: str, hide: bool) -> None:
    body = f"{SCORES} f = Constant<value_float=-1e9>() z = {where} {TAIL}"
    model = parse(body, FOUR_AXES + f", bool[b,1,1,{M}] m", OUT4)
    hidden = np.zeros((B, 1, 1, M), bool)
    hidden[0, ..., 2:4] = True
    counts, _ = fused(model)
    assert counts["attention"] == 1
    expected = attention64(QKV["q"], QKV["k"], QKV["v"], 1.0, np.where(hidden, -np.inf, 0.0))
    np.testing.assert_allclose(run(model, {**QKV, "m": hidden if hide else ~hidden}), expected, atol=2e-6)


def test_three_axes_of_merged_batch_and_heads_become_heads() -> None:
    model = parse(
        "kt = Transpose<perm=[0,2,1]>(k) z = MatMul(q, kt) w = Softmax<axis=2>(z) y = MatMul(w, v)",
        f"float[g,{N},{D}] q, float[g,{M},{D}] k, float[g,{M},{D}] v",
        f"float[g,{N},{D}] y",
    )
    feeds = {"q": normal(4, N, D), "k": normal(4, M, D), "v": normal(4, M, D)}
    counts, _ = fused(model)
    assert counts["attention"] == 1
    np.testing.assert_allclose(run(model, feeds), attention64(*feeds.values(), scale=1.0), atol=2e-6)


def test_einsum_as_jax_writes_it_becomes_one_operator_on_three_axes() -> None:
    model = parse(
        f"s4 = Constant<value_ints=[0,0,{H},{D}]>() c = Constant<value_float={D**0.5}>() "
        "q4 = Reshape(q, s4) qs = Div(q4, c) k4 = Reshape(k, s4) v4 = Reshape(v, s4) "
        'z = Einsum<equation="bqhd,bkhd->bhqk">(qs, k4) w = Softmax<axis=-1>(z) '
        'o = Einsum<equation="bhqk,bkhd->bqhd">(w, v4) '
        f"s3 = Constant<value_ints=[0,0,{E}]>() y = Reshape(o, s3)",
        f"float[b,{N},{E}] q, float[b,{M},{E}] k, float[b,{M},{E}] v",
    )
    feeds = {"q": normal(B, N, E), "k": normal(B, M, E), "v": normal(B, M, E)}
    counts, _ = fused(model)
    assert counts == {**counts, "einsum_to_matmul": 2, "attention": 1, "attention_heads": 1}
    assert ops(model) == ["Attention"]
    expected = merged(attention64(*(heads(x) for x in feeds.values())))
    np.testing.assert_allclose(run(model, feeds), expected, atol=2e-6)


PACKED = {
    "split": "q5, k5, v5 = Split<axis=0>(t, ones) q = Squeeze(q5, zero) k = Squeeze(k5, zero) v = Squeeze(v5, zero) ",
    "gather": "i = Constant<value_int=0>() j = Constant<value_int=1>() l = Constant<value_int=-1>() "
    "q = Gather<axis=0>(t, i) k = Gather<axis=0>(t, j) v = Gather<axis=0>(t, l) ",
    "slice": "one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>() end = Constant<value_ints=[99]>() "
    "q5 = Slice(t, zero, one, zero) k5 = Slice(t, one, two, zero) v5 = Slice(t, two, end, zero) "
    "q = Squeeze(q5, zero) k = Squeeze(k5, zero) v = Squeeze(v5, zero) ",
}


@pytest.mark.parametrize("parts", PACKED)
@pytest.mark.parametrize("batch", ["b", "2"])
def test_one_packed_projection_is_split_once_and_never_transposed(parts: str, batch: str) -> None:
    model = parse(
        f"s5 = Constant<value_ints=[-1,{N},3,{H},{D}]>() r = Reshape(x, s5) t = Transpose<perm=[2,0,3,1,4]>(r) "
        "zero = Constant<value_ints=[0]>() ones = Constant<value_ints=[1,1,1]>() "
        + PACKED[parts]
        + SCORES
        + f"c = Constant<value_float={D**-0.5}>() z = Mul(s, c) w = Softmax<axis=-1>(z) o = MatMul(w, v) "
        f"u = Transpose<perm=[0,2,1,3]>(o) s3 = Constant<value_ints=[-1,{N},{E}]>() y = Reshape(u, s3)",
        f"float[{batch},{N},{3 * E}] x",
    )
    counts, _ = fused(model)
    assert counts["attention_heads"] == 1
    assert ops(model) == ["Split", "Attention"]
    x = normal(B, N, 3 * E)
    expected = merged(attention64(*(heads(part) for part in np.split(x, 3, axis=2))))
    np.testing.assert_allclose(run(model, {"x": x}), expected, atol=2e-6)


def sequence_first(batch: str, head_batches: str, merge: str) -> ir.Model:
    """PyTorch's layout: (tokens, batch, width) → (batch · heads, tokens, width of a head) and back."""
    return parse(
        f"sq = Constant<value_ints=[{N},{head_batches},{D}]>() sk = Constant<value_ints=[{M},{head_batches},{D}]>() "
        "qr = Reshape(q, sq) q3 = Transpose<perm=[1,0,2]>(qr) kr = Reshape(k, sk) kt = Transpose<perm=[1,2,0]>(kr) "
        "vr = Reshape(v, sk) v3 = Transpose<perm=[1,0,2]>(vr) "
        f"c = Constant<value_float={D**-0.5}>() qs = Mul(q3, c) z = MatMul(qs, kt) w = Softmax<axis=-1>(z) "
        f"o = MatMul(w, v3) u = Transpose<perm=[1,0,2]>(o) s = Constant<value_ints=[{merge}]>() y = Reshape(u, s)",
        f"float[{N},{batch},{E}] q, float[{M},{batch},{E}] k, float[{M},{batch},{E}] v",
        f"float[{N},{batch},{E}] y",
    )


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (sequence_first("b", "-1", f"{N},-1,{E}"), B),
        (sequence_first(str(B), str(B * H), f"{N},{B},{E}"), B),
        (sequence_first("1", str(H), f"{N},1,{E}"), 1),
    ],
    ids=["dynamic batch", "batch 2", "batch 1"],
)
def test_sequence_first_attention_keeps_batch_and_heads_apart(model: ir.Model, batch: int) -> None:
    feeds = {"q": normal(N, batch, E), "k": normal(M, batch, E), "v": normal(M, batch, E)}
    counts, _ = fused(model)
    assert counts == {**counts, "attention": 1, "attention_heads": 1}
    assert "MatMul" not in ops(model)
    expected = merged(attention64(*(heads(x.swapaxes(0, 1)) for x in feeds.values()))).swapaxes(0, 1)
    np.testing.assert_allclose(run(model, feeds), expected, atol=2e-6)


def test_attention_of_an_opset_23_export_takes_over_its_heads() -> None:
    split = f"s4 = Constant<value_ints=[-1,{N},{H},{D}]>() "
    for name in "qkv":
        split += f"{name}r = Reshape({name}, s4) {name}4 = Transpose<perm=[0,2,1,3]>({name}r) "
    model = parse(
        split + "o = Attention<scale=0.2, is_causal=1>(q4, k4, v4) u = Transpose<perm=[0,2,1,3]>(o) "
        f"s3 = Constant<value_ints=[-1,{N},{E}]>() y = Reshape(u, s3)",
        f"float[b,{N},{E}] q, float[b,{N},{E}] k, float[b,{N},{E}] v",
        opset=23,
    )
    feeds = {name: normal(B, N, E) for name in "qkv"}
    counts, _ = fused(model)
    assert counts == {**counts, "attention": 0, "attention_heads": 1} and ops(model) == ["Attention"]
    causal = np.where(np.tri(N, dtype=bool), 0.0, -np.inf)
    expected = merged(attention64(*(heads(x) for x in feeds.values()), scale=0.2, mask=causal))
    np.testing.assert_allclose(run(model, feeds), expected, atol=2e-6)


LEFT_ALONE = {
    "softmax over queries": (
        SCORES.replace("s =", "z =") + "w = Softmax<axis=2>(z) y = MatMul(w, v)",
        "last axis",
    ),
    "scale is an input": (SCORES + "z = Mul(s, t) " + TAIL, "scale of the scores is not one constant number"),
    "scale per head": (
        SCORES + f"c = Constant<value_floats={[1.0] * M}>() z = Mul(s, c) " + TAIL,
        "scale of the scores is not one constant number",
    ),
    "negative scale": (SCORES + "c = Constant<value_float=-1.0>() z = Mul(s, c) " + TAIL, "not positive"),
    "mild fill": (
        SCORES + "f = Constant<value_float=-5.0>() b = Cast<to=9>(t) z = Where(b, f, s) " + TAIL,
        "-1e4 or less",
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_not_attention_is_left_alone_with_a_reason(case: str) -> None:
    body, reason = LEFT_ALONE[case]
    model = parse(body, FOUR_AXES + ", float[1] t", OUT4)
    before = ops(model)
    counts, reasons = fused(model)
    assert counts["attention"] == 0 and reason in reasons
    assert ops(model) == before and model.opset_imports[""] == 17


def test_attention_whose_weights_are_read_elsewhere_is_left_alone() -> None:
    model = parse(SCORES.replace("s =", "z =") + TAIL, FOUR_AXES, OUT4 + f", float[b,{H},{N},{M}] w")
    counts, reasons = fused(model)
    assert counts["attention"] == 0 and "used elsewhere" in reasons


def test_keys_broadcast_over_the_batch_are_left_alone() -> None:
    inputs = f"float[2,{H},{N},{D}] q, float[1,{H},{M},{D}] k, float[1,{H},{M},{D}] v"
    model = parse(SCORES.replace("s =", "z =") + TAIL, inputs, OUT4)
    counts, reasons = fused(model)
    assert counts["attention"] == 0 and "differ in axis 0: [1, 2]" in reasons


def test_softmax_of_old_opsets_that_flattens_axes_is_left_alone() -> None:
    model = parse(SCORES.replace("s =", "z =") + "w = Softmax(z) y = MatMul(w, v)", FOUR_AXES, OUT4, opset=12)
    counts, reasons = fused(model)
    assert counts["attention"] == 0 and "last axis" in reasons


def test_heads_that_are_mixed_with_the_width_are_not_absorbed() -> None:
    """The heads lie inside the width here: (batch, tokens, width, heads)."""
    split = f"s4 = Constant<value_ints=[-1,{N},{D},{H}]>() "
    for name in "qkv":
        split += f"{name}r = Reshape({name}, s4) {name}4 = Transpose<perm=[0,3,1,2]>({name}r) "
    model = parse(
        split + "o = Attention(q4, k4, v4) u = Transpose<perm=[0,2,1,3]>(o) "
        f"s3 = Constant<value_ints=[-1,{N},{E}]>() y = Reshape(u, s3)",
        f"float[b,{N},{E}] q, float[b,{N},{E}] k, float[b,{N},{E}] v",
        opset=23,
    )
    counts, reasons = fused(model)
    assert counts["attention_heads"] == 0
    assert "heads of the query are not split off the last axis of a projection" in reasons


def test_a_merge_that_interleaves_the_heads_is_not_absorbed() -> None:
    split = f"s4 = Constant<value_ints=[-1,{N},{H},{D}]>() "
    for name in "qkv":
        split += f"{name}r = Reshape({name}, s4) {name}4 = Transpose<perm=[0,2,1,3]>({name}r) "
    model = parse(
        split + "o = Attention(q4, k4, v4) u = Transpose<perm=[0,2,3,1]>(o) "
        f"s3 = Constant<value_ints=[-1,{N},{E}]>() y = Reshape(u, s3)",
        f"float[b,{N},{E}] q, float[b,{N},{E}] k, float[b,{N},{E}] v",
        opset=23,
    )
    counts, reasons = fused(model)
    assert counts["attention_heads"] == 0 and "not merged back next to their width" in reasons


def test_an_einsum_that_sums_two_letters_is_left_alone() -> None:
    model = parse('y = Einsum<equation="bhqd,bhkd->bqk">(q, k)', FOUR_AXES, f"float[b,{N},{M}] y")
    counts, reasons = fused(model)
    assert counts["einsum_to_matmul"] == 0 and "not one matrix product" in reasons


def test_shape_inference_agrees_with_the_fused_graph() -> None:
    model = parse(SCALED["query times"][0], FOUR_AXES, OUT4)
    fused(model)
    ShapeInferencePass()(model)
    assert list(model.graph.outputs[0].shape or [])[1:] == [H, N, D]
