"""A graph as the rules look at it: who makes and who reads a tensor, what is constant, what a node was set to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from vitesse.backends.protocol import Array
from vitesse.profile.graph import Flow
from vitesse.profile.modules import Modules, modules_of
from vitesse.sources.signature import opset_of

# A constant behind these is still the same constant, in another number format.
_SAME = frozenset({"Identity", "Cast"})
# And what only lays a constant out otherwise makes one: exporters write a part of a weight, turned, so.
_LAYOUT = frozenset({"Transpose", "Split", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
NORMALISATIONS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "BatchNormalization",
    }
)


class Graph:
    """Read-only view of a model's main graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.flow = Flow(model.graph)
        self.nodes: Sequence[onnx.NodeProto] = tuple(model.graph.node)
        self.outputs = tuple(entry.name for entry in model.graph.output)
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Array | None] = {}

    @cached_property
    def modules(self) -> Modules:
        """The module of every node."""
        return modules_of(self.model)

    @cached_property
    def moving(self) -> frozenset[str]:
        """The tensors that depend on the pixels; all of them in a graph without an image input."""
        depends = self.flow.from_image if self.flow.images else [True] * len(self.nodes)
        return frozenset(
            name for node, fed in zip(self.nodes, depends, strict=True) if fed for name in node.output
        )

    def module(self, tensor: str) -> str:
        """Return the dotted module that makes a tensor; empty where unknown."""
        place = self.modules.place_of(tensor)
        return "" if place is None else ".".join(place.path)

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for inputs, initialisers and unknown names."""
        at = self.flow.producer.get(tensor)
        return None if at is None else self.nodes[at]

    @cached_property
    def _readers(self) -> dict[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def readers(self, tensor: str) -> Sequence[onnx.NodeProto]:
        """Return the nodes that read a tensor, in order."""
        return self._readers.get(tensor, ())

    def constant(self, tensor: str) -> Array | None:
        """Return the value a tensor always has, None where it varies.

        Identity, Cast, DequantizeLinear and what only lays a constant out otherwise are looked through.
        """
        if tensor not in self._values:
            self._values[tensor] = self._constant(tensor)
        return self._values[tensor]

    def _constant(self, tensor: str) -> Array | None:
        if tensor in self._stored:
            value: Array = onnx.numpy_helper.to_array(self._stored[tensor])
            return value
        node = self.maker(tensor)
        if node is None:
            return None
        if node.op_type == "Constant":
            return _written(node)
        if node.op_type in _SAME:
            return self.constant(node.input[0])
        if node.op_type in _LAYOUT or node.op_type == "DequantizeLinear":
            values = {name: self.constant(name) for name in node.input if name}
            given = {name: value for name, value in values.items() if value is not None}
            if len(given) == len(values):
                return self._evaluated(node, tensor, given)
        return None

    def _evaluated(self, node: onnx.NodeProto, tensor: str, given: Mapping[str, Array]) -> Array:
        if node.op_type == "DequantizeLinear":
            return dequantised(
                [given[name] for name in node.input if name], self.settings(node).get("axis", 1)
            )
        graph = onnx.helper.make_graph(
            [node],
            "constant",
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in given],
            [onnx.helper.make_value_info(tensor, onnx.TypeProto())],
        )
        model = onnx.helper.make_model(graph, opset_imports=self.model.opset_import)
        (value,) = ReferenceEvaluator(model).run([tensor], dict(given))
        return np.asarray(value)

    def scalar(self, tensor: str) -> float | None:
        """Return the number a constant of one element holds; None otherwise."""
        value = self.constant(tensor)
        return float(value.item()) if value is not None and value.size == 1 else None

    def settings(self, node: onnx.NodeProto) -> Mapping[str, Any]:
        """Return a node's attributes by name, the standard's defaults included, subgraphs left out."""
        found: dict[str, Any] = {}
        try:
            schema = onnx.defs.get_schema(node.op_type, opset_of(self.model), node.domain)
        except onnx.defs.SchemaError:
            schema = None
        for name, attribute in ({} if schema is None else schema.attributes).items():
            if attribute.default_value.name:
                found[name] = _plain(onnx.helper.get_attribute_value(attribute.default_value))
        for given in node.attribute:
            if given.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                found[given.name] = _plain(onnx.helper.get_attribute_value(given))
        return found

    def computed(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of a node that depend on more than constants."""
        return [name for name in node.input if name and self.constant(name) is None]

    def upstream(self, tensor: str, *, until: frozenset[str] = frozenset()) -> Iterator[onnx.NodeProto]:
        """Yield the nodes a tensor comes from, nearest first, not going beyond tensors in `until`."""
        todo, seen = [tensor], {tensor}
        while todo:
            node = self.maker(todo.pop(0))
            if node is None:
                continue
            yield node
            fresh = [name for name in node.input if name and name not in seen and name not in until]
            seen.update(fresh)
            todo += fresh

    def downstream(self, tensor: str, steps: int) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that depend on a tensor, nearest first, at most `steps` operators away."""
        level, seen = [tensor], set[str]()
        for _ in range(steps):
            nodes = {node.output[0]: node for name in level for node in self.readers(name)}
            fresh = [node for first, node in nodes.items() if first not in seen]
            seen.update(nodes)
            yield from fresh
            level = [name for node in fresh for name in node.output]

    def of_type(self, *operators: str) -> list[onnx.NodeProto]:
        """Return the nodes of these operators, in order."""
        return [node for node in self.nodes if node.op_type in operators]

    def is_residual(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds two tensors that both depend on the image."""
        added = self.computed(node)
        return node.op_type == "Add" and len(added) == 2 and self.moving.issuperset(added)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that may be changed."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def with_constant(model: onnx.ModelProto, node: onnx.NodeProto, place: int, value: Array) -> onnx.ModelProto:
    """Return a copy in which one input of one node is another constant."""
    changed = copy_of(model)
    name = f"{node.input[place]}/other"
    changed.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for one in changed.graph.node:
        if list(one.output) == list(node.output):
            one.input[place] = name
    return changed


def dequantised(values: Sequence[Array], axis: int) -> NDArray[np.float64]:
    """Return (q − zero point) · scale in real numbers; a vector of scales lies along `axis`."""
    q, scale, *zero = (np.asarray(value, np.float64) for value in values)
    shape = [1] * q.ndim
    if scale.ndim == 1 and scale.size > 1 and q.ndim:
        shape[axis] = scale.size
        scale = scale.reshape(shape)
        zero = [one.reshape(shape) for one in zero]
    return np.asarray((q - (zero[0] if zero else 0.0)) * scale)


def _written(node: onnx.NodeProto) -> Array | None:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return np.asarray(onnx.numpy_helper.to_array(value))
    return None if isinstance(value, bytes | str) else np.asarray(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value).tolist()
    return (
        tuple(value)
        if isinstance(value, list) or (hasattr(value, "__len__") and not isinstance(value, str))
        else value
    )
