"""The last block computed for the class token only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

import fusing
from vitesse.fusion import attention_selected
from vitesse.fusion.rules import Fusion, apply

N, E = 5, 8
RNG = np.random.default_rng(1)
FUSION = (Fusion("selected_token", attention_selected.rules()),)
WEIGHTS = {
    **{name: RNG.standard_normal((E, E)).astype(np.float32) for name in ("wq", "wk", "wv", "wo", "w1", "w2")},
    **{name: RNG.standard_normal(E).astype(np.float32) for name in ("b", "g")},
}
BLOCK = (
    "n1 = LayerNormalization<axis=-1>(x, g, b) q = MatMul(n1, wq) k = MatMul(n1, wk) v = MatMul(n1, wv) "
    "a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v) o = MatMul(a, wo) ob = Add(o, b) x1 = Add(x, ob) "
    "n2 = LayerNormalization<axis=-1>(x1, g, b) h = MatMul(n2, w1) r = Gelu(h) m = MatMul(r, w2) "
    "x2 = Add(x1, m) n3 = LayerNormalization<axis=-1>(x2, g, b) "
)
FIRST = "i = Constant<value_int=0>() y = Gather<axis=1>(n3, i)"


def parse(body: str, outputs: str = f"float[b,{E}] y", extra: str = "") -> ir.Model:
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[b,{N},{E}] x{extra}) => ({outputs}) {{ {body} }}'
    )
    model = onnx.parser.parse_model(text)
    for name, array in WEIGHTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model: ir.Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return fusing.run(ir.to_proto(model), {"x": x})[0]


def rows(model: ir.Model) -> dict[str, int]:
    """Weight → number of tokens it multiplies."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.value_info}
    return {
        node.input[1]: shapes[node.output[0]][1].dim_value
        for node in proto.graph.node
        if node.op_type == "MatMul"
    }


@pytest.mark.parametrize(
    ("pick", "outputs"),
    [
        (FIRST, f"float[b,{E}] y"),
        ("i = Constant<value_int=-1>() y = Gather<axis=1>(n3, i)", f"float[b,{E}] y"),
        ("i = Constant<value_ints=[2]>() y = Gather<axis=1>(n3, i)", f"float[b,1,{E}] y"),
    ],
    ids=["first", "last", "axis kept"],
)
def test_all_but_keys_and_values_see_one_token(pick: str, outputs: str) -> None:
    model = parse(BLOCK + pick, outputs)
    x = RNG.standard_normal((3, N, E)).astype(np.float32)
    expected = run(model, x)
    counts, _ = apply(model, FUSION)
    RemoveUnusedNodesPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert counts == {"selected_token": 1}
    # The query shares its normalised input with keys and values, so it is normalised for all and picked then.
    assert rows(model) == {"wq": 1, "wk": N, "wv": N, "wo": 1, "w1": 1, "w2": 1}
    np.testing.assert_allclose(run(model, x), expected, atol=1e-5)


def test_a_second_reader_of_all_tokens_keeps_them() -> None:
    model = parse(BLOCK + FIRST, f"float[b,{E}] y, float[b,{N},{E}] n3")
    counts, reasons = apply(model, FUSION)
    assert counts == {"selected_token": 0}
    assert "read elsewhere or mixed before the pick" in str(reasons)


def test_a_mean_over_tokens_before_the_pick_is_not_crossed() -> None:
    body = (
        BLOCK
        + "ax = Constant<value_ints=[1]>() u = ReduceMean(n3, ax) z = Sub(n3, u) "
        + FIRST.replace("n3", "z")
    )
    model = parse(body)
    x = RNG.standard_normal((2, N, E)).astype(np.float32)
    expected = run(model, x)
    counts, reasons = apply(model, FUSION)
    assert counts == {"selected_token": 0} and "mixed before the pick" in str(reasons)
    np.testing.assert_array_equal(run(model, x), expected)


def test_a_token_chosen_at_run_time_stays_where_it_is() -> None:
    model = parse(BLOCK + "y = Gather<axis=1>(n3, i)", extra=", int64 i")
    counts, reasons = apply(model, FUSION)
    assert counts == {"selected_token": 0} and "not one constant index" in str(reasons)


def test_causal_attention_is_not_crossed_since_its_mask_tells_the_queries_apart() -> None:
    model = parse(BLOCK.replace("<q_num", "<is_causal=1, q_num") + FIRST)
    x = RNG.standard_normal((2, N, E)).astype(np.float32)
    expected = run(model, x)
    counts, _ = apply(model, FUSION)
    RemoveUnusedNodesPass()(model)
    assert counts == {"selected_token": 1} and rows(model)["wq"] == N and rows(model)["wo"] == 1
    np.testing.assert_allclose(run(model, x), expected, atol=1e-5)


def test_normalising_over_tokens_is_not_crossed() -> None:
    weights = "g2 = ConstantOfShape(s) b2 = ConstantOfShape(s) "
    body = f"s = Constant<value_ints=[{N},{E}]>() {weights} " + BLOCK.replace(
        "n3 = LayerNormalization<axis=-1>(x2, g, b)", "n3 = LayerNormalization<axis=1>(x2, g2, b2)"
    )
    counts, reasons = apply(parse(body + FIRST), FUSION)
    assert counts == {"selected_token": 0} and "mixed before the pick" in str(reasons)
