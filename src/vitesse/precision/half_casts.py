"""A float32 graph → the same graph in FP16 or BF16, with casts where it meets nodes that stay in FP32.

onnxruntime.transformers.float16 does this for FP16, too, and is not used: on a cleaned DETR it leaves the casts of the
inputs behind the nodes that read them (onnx.checker refuses the file), casts once for every reader, rounds an
initialiser that an FP32 node reads through FP16 first, gives its casts no note of their module, and has no BF16.
Here a node's types follow from the operator's own schema, so that the same rules hold for both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitesse.errors import ModelError
from vitesse.fusion.contract import load
from vitesse.fusion.folding import lift_constants
from vitesse.fusion.opset import opset_of
from vitesse.fusion.shapes import complete_shapes
from vitesse.scopes import inherited

HALF_TYPES: Mapping[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SCHEMA_NAMES = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
# They answer the same for a tensor of any float type.
_INDIFFERENT = frozenset({"Cast", "Shape", "Size"})
# Operator → place of the input whose type its result has; from opset 23 on the schema no longer says so.
_FOLLOWED = {"DequantizeLinear": 1}


class HalfGraph:
    """A float32 graph, ready to be written in half precision with any set of islands.

    Args:
        model: a cleaned graph; it is not changed.
        number: `fp16` or `bf16`.

    Raises:
        ModelError: the graph is not valid or has local functions.
    """

    def __init__(self, model: onnx.ModelProto, number: str = "fp16") -> None:
        self.number, self._half = number, HALF_TYPES[number]
        self._model = load(model)
        if self._model.functions:
            raise ModelError(
                "the graph has local functions",
                expected="a graph whose functions are written out",
                fix="clean it first: `vitesse optimize` does so, or vitesse.clean",
            )
        lift_constants(self._model)
        complete_shapes(self._model)
        self._name_nodes()
        opset = opset_of(self._model)
        self._slots = {node.name or "": _slots(node, self._half, opset) for node in self._model.graph}

    @property
    def float_model(self) -> onnx.ModelProto:
        """The float32 graph; its node names are the ones that islands are named by."""
        return ir.to_proto(self._model)

    @property
    def convertible(self) -> tuple[str, ...]:
        """Names of the nodes that compute in half precision unless they are islands, in the graph's order."""
        return tuple(name for name, (reads, makes) in self._slots.items() if reads or makes)

    def written(self, islands: Collection[str] = (), *, keep_io: bool = True) -> onnx.ModelProto:
        """Return the graph in half precision.

        Every float32 tensor that a node outside `islands` makes has the half type; initialisers are rounded
        from their float32 values, once for all who read them so, and stay float32 for islands. A cast stands
        behind the node that makes a tensor, once for all readers of the other type. What is beyond the half
        type's range (masks of -inf) becomes its largest or lowest number.

        Args:
            islands: names of nodes that stay in FP32. Nodes inside If, Loop and Scan always do.
            keep_io: inputs and outputs stay float32 and keep their names; False: they have the half type, too.
        """
        model = self._model.clone()
        writer = _Writer(model.graph, self._half, self.number)
        for node in model.graph:
            reads, makes = self._slots[node.name or ""]
            if node.name not in islands and (reads or makes):
                writer.lower(node, reads, makes)
        writer.connect(keep_io=keep_io)
        RemoveUnusedNodesPass()(model)
        return ir.to_proto(model)

    def _name_nodes(self) -> None:
        """Islands are named by node: every node needs a name of its own."""
        seen: set[str] = set()
        for at, node in enumerate(self._model.graph):
            if not node.name or node.name in seen:
                # Not by its place: the same graph with Q/DQ pairs in it has the same names.
                node.name = f"{node.op_type}_{next((one.name for one in node.outputs if one.name), at)}"
            seen.add(node.name)


class _Writer:
    """Changes one graph in place."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, suffix: str) -> None:
        self._graph, self._half, self._suffix = graph, half, suffix
        self._reads: dict[tuple[ir.Node, int], bool] = {}
        self._made: set[ir.Value] = set()

    def lower(self, node: ir.Node, reads: frozenset[int], makes: frozenset[int]) -> None:
        """Let a node read and make tensors of half type at these places."""
        for place in reads:
            self._reads[node, place] = True
        for place in makes:
            self._made.add(node.outputs[place])
        _answer_in(node, self._half)

    def connect(self, *, keep_io: bool) -> None:
        """Cast every tensor for those readers that want the other type."""
        values = [
            *self._graph.inputs,
            *self._graph.initializers.values(),
            *(value for node in self._graph for value in node.outputs),
        ]
        floats = [value for value in values if value.dtype == ir.DataType.FLOAT]
        for value in floats:
            is_half = value in self._made or (not keep_io and value.is_graph_input())
            self._serve(value, is_half)
        for at, value in enumerate(list(self._graph.outputs)):
            if value.dtype == (self._half if keep_io else ir.DataType.FLOAT) and value in floats:
                self._declare(at, value)

    def _serve(self, value: ir.Value, is_half: bool) -> None:
        readers = [
            (node, place)
            for node, place in value.uses()
            if not (node.op_type in _INDIFFERENT and node.domain == "")
        ]
        others = [
            (node, place) for node, place in readers if self._reads.get((node, place), False) != is_half
        ]
        if value.is_initializer() and not value.is_graph_input():
            self._round_constant(value, others, len(others) == len(value.uses()))
            return
        if is_half:
            value.type = ir.TensorType(self._half)  # setting dtype would change the type that clones share
        if others:
            cast = self._cast(value, ir.DataType.FLOAT if is_half else self._half)
            for node, place in others:
                node.replace_input_with(place, cast)

    def _round_constant(self, value: ir.Value, readers: list[tuple[ir.Node, int]], all_of_them: bool) -> None:
        """Replace a constant for those who read it in half; the original goes where nobody else reads it."""
        if not readers:
            return
        assert value.const_value is not None and value.name is not None
        rounded = ir.tensor(rounded_constant(value.const_value.numpy(), self._half), dtype=self._half)
        if all_of_them and not value.is_graph_output():
            value.const_value, value.type = rounded, ir.TensorType(self._half)
            rounded.name = value.name
            return
        copy = ir.Value(name=f"{value.name}_{self._suffix}", shape=value.shape, const_value=rounded)
        copy.dtype = self._half
        rounded.name = copy.name
        self._graph.register_initializer(copy)
        for node, place in readers:
            node.replace_input_with(place, copy)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        suffix = "fp32" if to == ir.DataType.FLOAT else self._suffix
        maker = value.producer()
        near = maker or next(iter(value.uses())).node
        cast = ir.node("Cast", [value], {"to": to}, name=f"{value.name}_to_{suffix}")
        cast.metadata_props.update(inherited(near.name or "", near.metadata_props))
        made = cast.outputs[0]
        made.name, made.dtype, made.shape = f"{value.name}_{suffix}", to, value.shape
        if maker is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(maker, cast)
        return made

    def _declare(self, at: int, value: ir.Value) -> None:
        """Give an output the type it must have under its old name; inside, the tensor is called otherwise."""
        to = ir.DataType.FLOAT if value.dtype == self._half else self._half
        cast = self._cast(value, to)
        cast.name, value.name = value.name, f"{value.name}_{'fp32' if to == self._half else self._suffix}"
        self._graph.outputs[at] = cast


def largest_number(half: ir.DataType) -> float:
    """65504 for FP16, about 3.4e38 for BF16."""
    return float(ml_dtypes.finfo(half.numpy()).max)  # type: ignore[no-untyped-call]


def rounded_constant(array: NDArray[np.generic], half: ir.DataType) -> NDArray[np.generic]:
    """Round to the half type; what is beyond its range, infinities among it, becomes its largest or lowest number."""
    limit = largest_number(half)
    with np.errstate(over="ignore", under="ignore"):
        return np.clip(array.astype(np.float32), -limit, limit).astype(half.numpy())


def _answer_in(node: ir.Node, half: ir.DataType) -> None:
    """Change the attribute that says which type the node makes."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(half))
    elif "output_dtype" in node.attributes and node.op_type in _FOLLOWED:
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(half))
    elif node.op_type == "ConstantOfShape":
        value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1)
        node.attributes["value"] = ir.AttrTensor(
            "value", ir.tensor(rounded_constant(value, half), dtype=half)
        )


def _slots(node: ir.Node, half: ir.DataType, opset: int) -> tuple[frozenset[int], frozenset[int]]:
    """The places at which a node may read and make `half` instead of float32, by its operator's schema."""
    schema = _schema(node.op_type, opset) if node.domain == "" else None
    if schema is None or any(_is_graph(attribute) for attribute in node.attributes.values()):
        return frozenset(), frozenset()
    read, answered = _variables(schema.inputs, node.inputs), _variables(schema.outputs, node.outputs)
    allowed = {
        one.type_param_str for one in schema.type_constraints if _SCHEMA_NAMES[half] in one.allowed_type_strs
    }
    if node.op_type in _INDIFFERENT:
        read, bound = {}, allowed if node.op_type == "Cast" else set()
    else:
        # A type that no input binds is an attribute's: the accumulator of LayerNormalization, say, stays FP32.
        bound = allowed if node.op_type == "ConstantOfShape" else allowed & {*read.values()}
    reads = frozenset(place for place, variable in read.items() if variable in bound)
    if node.op_type in _FOLLOWED:
        return reads, frozenset(answered) if _FOLLOWED[node.op_type] in reads else frozenset()
    return reads, frozenset(place for place, variable in answered.items() if variable in bound)


def _variables(
    formal: Sequence[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]
) -> dict[int, str]:
    """The type variable of every float32 tensor, by its place; the last formal parameter may stand for many."""
    return {
        place: formal[min(place, len(formal) - 1)].type_str
        for place, value in enumerate(values)
        if value is not None and value.dtype == ir.DataType.FLOAT
    }


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
