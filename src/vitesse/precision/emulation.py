"""A graph in FP16 or BF16 → the same graph in FP32 that rounds wherever the original rounds.

Runtimes on CPU do not compute such a graph faithfully: ONNX Runtime runs most FP16 operators in FP32 and drops the
casts it inserted for that, so that 300² does not overflow. Casts written into the graph are kept, however, and
rounding float32 to FP16 and back behind every operator gives exactly what an FP16 unit with FP32 accumulation gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from vitesse.errors import ModelError
from vitesse.fusion.contract import load
from vitesse.fusion.rules import apply
from vitesse.fusion.shapes import complete_shapes
from vitesse.lowering import REWRITES
from vitesse.lowering.building import is_half as is_half_type
from vitesse.scopes import inherited

_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
# Attributes that say in which type an operator computes or answers.
_TYPES = frozenset(
    {"dtype", "to", "output_dtype", "output_datatype", "precision", "stash_type", "softmax_precision"}
)

# They hand numbers on, and compute nothing.
_CARRIERS = frozenset({"Constant", "Identity", "DequantizeLinear", "Reshape", "Transpose"})


def is_half(model: onnx.ModelProto) -> bool:
    """Whether any tensor of the graph, its subgraphs or functions is FP16 or BF16."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            typed = (
                entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output, *graph.value_info)
            )
            if any(kind in _HALF for kind in typed) or any(
                one.data_type in _HALF for one in graph.initializer
            ):
                return True
            nodes += graph.node
        attributes = [attribute for node in nodes for attribute in node.attribute]
        if any(_says_half(attribute) for attribute in attributes):
            return True
        graphs = [
            inner for attribute in attributes for inner in (attribute.g, *attribute.graphs) if inner.node
        ]
        nodes = []
    return False


def computes_in_half(model: onnx.ModelProto) -> bool:
    """Whether an operator reads numbers of half precision; weights that are only stored so do not count."""
    if not is_half(model):
        return False
    half = {entry.name for entry in model.graph.input if entry.type.tensor_type.elem_type in _HALF}
    half |= {tensor.name for tensor in model.graph.initializer if tensor.data_type in _HALF}
    for node in model.graph.node:
        reads = any(name in half for name in node.input)
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
        if node.op_type == "Cast":
            half |= set(node.output) if to in _HALF else set()
        elif node.op_type in _CARRIERS:
            half |= set(node.output) if reads or _holds_half(node) else set()
        elif reads:
            return True
    return False


def _holds_half(node: onnx.NodeProto) -> bool:
    return any(attribute.t.data_type in _HALF for attribute in node.attribute)


def _says_half(attribute: onnx.AttributeProto) -> bool:
    return attribute.t.data_type in _HALF or (attribute.name in _TYPES and attribute.i in _HALF)


def emulated(model: onnx.ModelProto, *, headroom: float = 1.0) -> onnx.ModelProto:
    """Return a float32 graph with the values of an FP16 or BF16 graph.

    Every tensor of half type becomes float32 and is rounded to the half type behind the node that makes it
    (initialisers once, here). So what is beyond 65504 becomes infinite and what is below 2⁻²⁵ zero in FP16, while a
    matrix product, a convolution, a sum and the inside of LayerNormalization and Softmax are computed in FP32, as
    tensor cores and the kernels of GPUs do. Attention is written out first, so that its scores are rounded too: a
    fused kernel may keep them in FP32, an unfused one does not. Where its shape is not known enough for that, only
    its result is rounded.

    Nodes and tensors keep their names; the rounded value has the name of the original tensor. Inputs and outputs of
    half type become float32, too; such an input `x` is rounded to `x_rounded` before anything reads it. Subgraphs
    of If, Loop and Scan are treated alike. Nodes are put in order, which converters to FP16 often fail to do. A
    graph without half types comes back as it is.

    Args:
        headroom: a power of two; numbers beyond the half type's largest divided by it become infinite, too. So a trial
            on a few images tells what other images, whose values go that much further, would do.

    Raises:
        ModelError: `model` is not valid, or has local functions, sequences or optionals.
    """
    if not is_half(model):
        return model
    graph = load(_in_order(model))
    _refuse_what_cannot_be_rounded(graph)
    complete_shapes(graph)
    _write_attention_out(graph)
    taken = {value.name for node in RecursiveGraphIterator(graph.graph) for value in node.outputs}
    rounding = _Rounding(graph.graph, taken, headroom)
    nodes = list(RecursiveGraphIterator(graph.graph))
    for owner in list(_graphs(graph)):
        rounding.constants(owner)
        rounding.inputs(owner, rounded=owner is graph.graph)
    for node in nodes:
        rounding.node(node)
    return ir.to_proto(graph)


def _refuse_what_cannot_be_rounded(model: ir.Model) -> None:
    if model.functions:
        raise ModelError(
            "the graph has local functions",
            expected="a graph whose functions are written out",
            fix="clean it first: `vitesse optimize` does so, or vitesse.clean",
        )
    for node in RecursiveGraphIterator(model.graph):
        if node.domain == "" and ("Sequence" in node.op_type or "Optional" in node.op_type):
            raise ModelError(
                f"the node `{node.name}` is a {node.op_type}",
                expected="a graph of tensors only: what a sequence or an optional holds cannot be rounded",
                fix="export the model again without lists of tensors inside it",
            )


def _in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    graph.graph.sort()
    return ir.to_proto(graph)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    for node in RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph()
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield from attribute.as_graphs()


def _write_attention_out(model: ir.Model) -> None:
    """Replace every Attention; the node that makes its result keeps its name."""
    names = {
        node.outputs[0].name: node.name
        for node in model.graph
        if node.op_type == "Attention" and not node.domain
    }
    if not names:
        return
    apply(model, (REWRITES["attention"].fusion(),))
    for node in model.graph:
        if node.outputs[0].name in names:
            node.name = names[node.outputs[0].name]
    complete_shapes(model)


class _Rounding:
    """Turns half types into float32 and writes what rounds; `taken` are the names of tensors in the main `graph`."""

    def __init__(self, graph: ir.Graph, taken: set[str | None], headroom: float) -> None:
        self._graph, self._taken, self._headroom = graph, taken, headroom

    def constants(self, graph: ir.Graph) -> None:
        """Round initialisers once."""
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and is_half_type(tensor.dtype):
                value.const_value = _as_float(tensor, value.name)
                value.dtype = ir.DataType.FLOAT

    def inputs(self, graph: ir.Graph, *, rounded: bool) -> None:
        """Declare inputs as float32; those of a subgraph have been rounded where they were made."""
        for value in graph.inputs:
            half = _half_type(value)
            if half is None:
                continue
            value.dtype = ir.DataType.FLOAT
            if rounded:
                users = list(value.uses())
                casts = self._casts(value, half, {})
                casts[-1].outputs[0].name = self._free(f"{value.name}_rounded")
                for node, place in users:
                    node.replace_input_with(place, casts[-1].outputs[0])
                if len(graph):
                    graph.insert_before(graph[0], casts)
                else:
                    graph.extend(casts)

    def node(self, node: ir.Node) -> None:
        """Let a node compute in float32 and round what it makes."""
        _compute_in_float(node)
        notes = inherited(node.name or "", node.metadata_props)
        for value in node.outputs:
            half = _half_type(value)
            if half is not None and value.name:
                self._round(node, value, half, notes)

    def _round(self, node: ir.Node, value: ir.Value, half: ir.DataType, notes: dict[str, str]) -> None:
        name = value.name or ""
        casts = self._casts(value, half, notes)
        rounded = casts[-1].outputs[0]
        rounded.shape = value.shape
        value.name, rounded.name = self._free(f"{name}_unrounded"), name
        value.replace_all_uses_with(rounded, replace_graph_outputs=True)
        casts[0].replace_input_with(0, value)
        value.dtype = ir.DataType.FLOAT
        assert node.graph is not None
        node.graph.insert_after(node, casts)

    def _casts(self, value: ir.Value, half: ir.DataType, notes: dict[str, str]) -> list[ir.Node]:
        """Cast to the half type, and back to float32; with headroom a second time, scaled.

        A number that was rounded once, times a power of two, is still exact, unless it overflows.
        """
        name = value.name or ""
        nodes = self._there_and_back(value, half, name)
        if self._headroom != 1:
            nodes.append(self._times(nodes[-1].outputs[0], self._headroom, name))
            nodes += self._there_and_back(nodes[-1].outputs[0], half, name)
            nodes.append(self._times(nodes[-1].outputs[0], 1 / self._headroom, name))
        for node in nodes:
            node.metadata_props.update(notes)
        return nodes

    def _there_and_back(self, value: ir.Value, half: ir.DataType, name: str) -> list[ir.Node]:
        there = self._node("Cast", [value], {"to": half}, f"{name}_half", half)
        return [there, self._node("Cast", there.outputs, {"to": ir.DataType.FLOAT}, f"{name}_float")]

    def _times(self, value: ir.Value, factor: float, name: str) -> ir.Node:
        constant = ir.Value(name=self._free(f"{name}_factor"), const_value=ir.tensor(np.float32(factor)))
        self._graph.register_initializer(constant)
        return self._node("Mul", [value, constant], {}, f"{name}_scaled")

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, ir.DataType],
        name: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, name=self._free(f"{name}_by"))
        node.outputs[0].name, node.outputs[0].dtype = self._free(name), dtype
        return node

    def _free(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        return name


def _compute_in_float(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in _TYPES and attribute.as_int() in _HALF:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and is_half_type(attribute.as_tensor().dtype):
            node.attributes[name] = ir.AttrTensor(name, _as_float(attribute.as_tensor(), None))


def _half_type(value: ir.Value) -> ir.DataType | None:
    """The half type of a tensor, None for others."""
    return value.dtype if value.dtype is not None and is_half_type(value.dtype) else None


def _as_float(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=name)
