"""The types in which an ONNX graph computes: what a weakly typed builder is allowed, and the name of a precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import onnx
from onnx import TensorProto

# Operators whose products are most of the work.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention"})
# They hand a tensor on without computing.
_CARRIERS = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice"})
_HALF: Mapping[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_EIGHT: Mapping[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    **dict.fromkeys((TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2), "fp8"),
}
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class GraphTypes:
    """Types of one graph.

    Args:
        precision: of the products: "fp32", "fp16", "bf16"; "int8" or "fp8" where activations are quantised, with
            "+fp16" or "+bf16" where products that are not, or their results, are in half precision.
        half: which of "fp16", "bf16" any tensor has.
        quantised: which of "int8", "fp8" any Q/DQ has, of weights too.
    """

    precision: str
    half: frozenset[str]
    quantised: frozenset[str]


def graph_types(model: onnx.ModelProto) -> GraphTypes:
    """Look through a graph and its subgraphs; types are inferred without reading the weights."""
    types = element_types(model)
    nodes = list(_nodes(model.graph))
    made_by = {name: node for node in nodes for name in node.output}
    eight, half = set(), set()
    for node in nodes:
        if node.op_type in _PRODUCTS and node.domain in ("", "ai.onnx"):
            eight |= _activations(node, made_by, types)
            half |= {_HALF[types[name]] for name in node.output[:1] if types.get(name) in _HALF}
    quantised = {
        _EIGHT[kind]
        for node in nodes
        if node.op_type in (_Q, _DQ)
        for kind in (quantised_type(node, types),)
        if kind in _EIGHT
    }
    everywhere = {_HALF[kind] for kind in types.values() if kind in _HALF}
    precision = "+".join((*sorted(eight), *sorted(half, reverse=True)[:1])) or "fp32"
    return GraphTypes(precision, frozenset(everywhere), frozenset(quantised))


def quantised_type(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    """Return the ONNX type on the quantised side of a QuantizeLinear or DequantizeLinear.

    The standard makes it UINT8 where QuantizeLinear has neither zero point nor `output_dtype`.
    """
    if node.op_type == _DQ:
        return types.get(node.input[0], TensorProto.UNDEFINED)
    if len(node.input) > 2 and node.input[2]:
        return types.get(node.input[2], TensorProto.UNDEFINED)
    said = next((entry.i for entry in node.attribute if entry.name == "output_dtype"), 0)
    return said or int(TensorProto.UINT8)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the ONNX element type of every tensor that has a known one.

    Weights become inputs of a bare copy, so that nothing large is copied and 2 GB are no limit.
    """
    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    given = {entry.name for entry in graph.input}
    for weight in model.graph.initializer:
        if weight.name not in given:
            graph.input.append(
                onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            )
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    # Where types cannot be inferred, what the graph itself says of them is still there.
    with suppress(onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        bare = onnx.shape_inference.infer_shapes(bare)
    types = dict(_told(bare.graph))
    types |= {weight.name: weight.data_type for weight in model.graph.initializer}
    return types


def _told(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for entry in (*graph.input, *graph.value_info, *graph.output):
        yield entry.name, entry.type.tensor_type.elem_type
    for weight in graph.initializer:
        yield weight.name, weight.data_type
    for inner in _subgraphs(graph.node):
        yield from _told(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs((node,)):
            yield from _nodes(inner)


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _activations(
    node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto], types: Mapping[str, int]
) -> set[str]:
    """Which 8-bit types a product reads activations in: an operand is dequantised, and was quantised in the graph."""
    found = set()
    for name in node.input[:2]:
        source = made_by.get(name)
        while source is not None and (source.op_type in _CARRIERS or source.op_type == "Cast"):
            source = made_by.get(source.input[0])
        if source is None or source.op_type != _DQ:
            continue
        quantiser = made_by.get(source.input[0])
        while quantiser is not None and quantiser.op_type in _CARRIERS:
            quantiser = made_by.get(quantiser.input[0])
        kind = quantised_type(source, types)
        if quantiser is not None and quantiser.op_type == _Q and kind in _EIGHT:
            found.add(_EIGHT[kind])
    return found
