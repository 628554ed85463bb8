"""The precision of a graph is read from its types, without its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tiny_onnx_qdq as tiny
from vitesse.backends.tensorrt.graph_types import GraphTypes, graph_types

NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("kind", "half", "quantised"),
    [
        ("fp32", NONE, NONE),
        ("fp16", {"fp16"}, NONE),
        ("bf16", {"bf16"}, NONE),
        ("int8", NONE, {"int8"}),
        ("int8+fp16", {"fp16"}, {"int8"}),
        ("fp8", NONE, {"fp8"}),
        ("fp8+fp16", {"fp16"}, {"fp8"}),
    ],
)
def test_each_precision_is_told(kind: str, half: frozenset[str], quantised: frozenset[str]) -> None:
    assert graph_types(tiny.product(kind)) == GraphTypes(kind, frozenset(half), frozenset(quantised))


def test_weights_alone_in_int8_leave_the_products_in_float() -> None:
    weights = [
        helper.make_tensor("w", TensorProto.INT8, [4, 4], [1] * 16),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"]),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    assert graph_types(tiny.model(nodes, weights)) == GraphTypes("fp32", NONE, frozenset({"int8"}))


def test_a_float16_tensor_beside_float32_products_is_no_precision_but_must_be_allowed() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [1.0] * 16)]
    assert graph_types(tiny.model(nodes, weights)) == GraphTypes("fp32", frozenset({"fp16"}), NONE)


def test_quantising_without_zero_point_is_uint8_unless_it_says_otherwise() -> None:
    weights = [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])]
    for said, expected in ((None, "int8"), (TensorProto.FLOAT8E4M3FN, "fp8")):
        attributes = {} if said is None else {"output_dtype": said}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
        ]
        assert graph_types(tiny.model(nodes, weights, 21)).quantised == {expected}


def test_types_within_branches_count() -> None:
    inner = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["h"], ["out"], to=1),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4])],
    )
    nodes = [helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner)]
    graph = tiny.model(nodes, [helper.make_tensor("condition", TensorProto.BOOL, [], [True])])
    assert graph_types(graph).half == {"fp16"}


def test_weights_that_lie_elsewhere_are_not_needed(tmp_path: Path) -> None:
    model = tiny.product("fp16")
    weight = next(one for one in model.graph.initializer if one.name == "w")
    weight.raw_data = np.zeros((4, 4), np.float16).tobytes()
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    (tmp_path / next(iter(p.name for p in tmp_path.iterdir() if p != path))).unlink()
    assert graph_types(onnx.load(path, load_external_data=False)).precision == "fp16"
