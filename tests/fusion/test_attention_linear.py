"""Linear layers between changes of layout that undo each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

import fusing
from vitesse.fusion import attention_linear
from vitesse.fusion.rules import Fusion, apply

N, E, F = 5, 8, 6
RNG = np.random.default_rng(3)
FUSION = (Fusion("linear_between_layouts", attention_linear.rules()),)
WEIGHTS = {
    "w": RNG.standard_normal((E, F)).astype(np.float32),
    "wt": RNG.standard_normal((F, E)).astype(np.float32),
    "b": RNG.standard_normal(F).astype(np.float32),
    "square": RNG.standard_normal((N, N)).astype(np.float32),
}
TO_MATRIX = f"t = Transpose<perm=[1,0,2]>(x) s = Constant<value_ints=[-1,{E}]>() r = Reshape(t, s) "
BACK = f"u = Constant<value_ints=[{N},-1,{F}]>() z = Reshape(g, u) y = Transpose<perm=[1,0,2]>(z)"


def parse(body: str, outputs: str = f"float[b,{N},{F}] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (float[b,{N},{E}] x) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, array in WEIGHTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model: ir.Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return fusing.run(ir.to_proto(model), {"x": x})[0]


DETOURS = {
    "sequence first": (
        "t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) a = Add(b, m) y = Transpose<perm=[1,0,2]>(a)",
        lambda x: x @ WEIGHTS["w"].astype(np.float64) + WEIGHTS["b"],
    ),
    "without bias": (
        "t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) y = Transpose<perm=[1,0,2]>(m)",
        lambda x: x @ WEIGHTS["w"].astype(np.float64),
    ),
    "matrix and Gemm": (
        TO_MATRIX + "g = Gemm<transB=1>(r, wt, b) " + BACK,
        lambda x: x @ WEIGHTS["wt"].T.astype(np.float64) + WEIGHTS["b"],
    ),
}


@pytest.mark.parametrize("detour", DETOURS)
def test_the_detour_goes_away(detour: str) -> None:
    body, expected = DETOURS[detour]
    model = parse(body)
    counts, _ = apply(model, FUSION)
    RemoveUnusedNodesPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert counts == {"linear_between_layouts": 1}
    assert {node.op_type for node in model.graph} <= {"MatMul", "Add"}
    x = RNG.standard_normal((3, N, E)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), expected(x.astype(np.float64)), atol=1e-5)


LEFT_ALONE = {
    "the result stays sequence first": (
        "t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) i = Constant<value_ints=[0]>() y = Unsqueeze(m, i)",
        f"float[1,{N},b,{F}] y",
    ),
    "a Gemm that scales": (
        TO_MATRIX + "g = Gemm<alpha=0.5, transB=1>(r, wt, b) " + BACK,
        f"float[b,{N},{F}] y",
    ),
    "another reader of the matrix": (
        TO_MATRIX + "g = Gemm<transB=1>(r, wt, b) " + BACK,
        f"float[b,{N},{F}] y, float[m,{F}] g",
    ),
    "batch and tokens swapped for good": (
        TO_MATRIX + f"g = Gemm<transB=1>(r, wt, b) u = Constant<value_ints=[-1,{N},{F}]>() y = Reshape(g, u)",
        f"float[b,{N},{F}] y",
    ),
    "the layer mixes tokens": (
        "t = Transpose<perm=[0,2,1]>(x) m = MatMul(t, square) y = Transpose<perm=[0,2,1]>(m)",
        f"float[b,{N},{E}] y",
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_a_layer_whose_layout_really_changes_is_left_alone(case: str) -> None:
    body, outputs = LEFT_ALONE[case]
    model = parse(body, outputs)
    before = [node.op_type for node in model.graph]
    counts, reasons = apply(model, FUSION)
    assert counts == {"linear_between_layouts": 0}
    assert [node.op_type for node in model.graph] == before
    if case == "batch and tokens swapped for good":
        assert "the layout after the linear layer is not the one before it" in str(reasons)
