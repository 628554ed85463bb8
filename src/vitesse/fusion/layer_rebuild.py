"""Operators on a stack of layers, built again for one layer alone, beside the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.layer_axis import through
from vitesse.fusion.layer_parts import Elsewhere, Layer, Part, Passage, Squeezed
from vitesse.fusion.rules import constant
from vitesse.scopes import inherited


class Rebuilding:
    """Builds each operator once for all picks of the same layer; the old ones stay, for dead code to be removed.

    Every layer asked for must have been followed up to its stack before, so that nothing here can be refused.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, Layer], ir.Value] = {}
        values = (value for node in graph for value in node.outputs)
        named = (*graph, *graph.inputs, *graph.initializers.values(), *values)
        self._names = {one.name for one in named}  # of nodes and tensors; runtimes refuse equal ones
        self._unnamed: set[ir.Value] = set()

    def replace(self, picked: ir.Value, stacked: ir.Value, layer: Layer, *, keeps_axis: bool) -> None:
        """Put the layer computed alone in the place of `picked`."""
        alone = self._layer(stacked, layer)
        node = picked.producer()
        assert node is not None
        if not keeps_axis:
            self._stand_in(alone, picked, node)
            return
        for user in [use.node for use in picked.uses()]:
            if _squeezes(user, layer.axis):
                self._stand_in(alone, user.outputs[0], user)
        if any(not _squeezes(use.node, layer.axis) for use in picked.uses()) or picked.is_graph_output():
            axes = self._constant(np.array([layer.axis], np.int64), f"{picked.name}_axes")
            unsqueeze = self._node("Unsqueeze", [alone, axes], picked)
            self._graph.insert_before(node, unsqueeze)
            self._stand_in(unsqueeze.outputs[0], picked, node)

    def _stand_in(self, value: ir.Value, old: ir.Value, node: ir.Node) -> None:
        """Let `value` be read wherever `old`, made by `node`, is; it takes over the name where it has none to keep."""
        name, output = old.name, old.is_graph_output()
        if output and value not in self._unnamed:
            same = self._node("Identity", [value], old)
            self._graph.insert_before(node, same)
            value = same.outputs[0]
        if value in self._unnamed:
            self._unnamed.discard(value)
            old.name, value.name = self._free(f"{name}_stacked"), name
        if output:
            value.shape, value.type = old.shape, old.type
            self._graph.outputs[list(self._graph.outputs).index(old)] = value
        old.replace_all_uses_with(value)

    def _layer(self, value: ir.Value, layer: Layer) -> ir.Value:
        """The tensor that is one layer of `value`."""
        if (value, layer) not in self._made:
            self._made[value, layer] = self._computed(value, layer)
        return self._made[value, layer]

    def _computed(self, value: ir.Value, layer: Layer) -> ir.Value:
        array = constant(value)
        if array is not None:
            return self._constant(_entry(array, layer), f"{value.name}_layer{layer.index}")
        node = value.producer()
        assert node is not None
        passage = through(node, layer)
        if isinstance(passage, Elsewhere):
            if node.op_type == "Concat" and passage.layer.length == 1:
                return self._squeezed(passage.value, layer.axis, node)
            return self._layer(passage.value, passage.layer)
        made = self._again(node, passage, layer)
        for new, old in zip(made.outputs, node.outputs, strict=True):
            self._made[old, layer] = new
        return self._made[value, layer]

    def _again(self, node: ir.Node, passage: Passage, layer: Layer) -> ir.Node:
        sources = (*node.inputs, *(None,) * len(passage.inputs))
        inputs = [
            self._part(part, source, node) for part, source in zip(passage.inputs, sources, strict=False)
        ]
        names = [f"{output.name}_layer{layer.index}" for output in node.outputs]
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            {
                **node.attributes,
                **{key: _attribute(key, value) for key, value in passage.attributes.items()},
            }.values(),
            num_outputs=len(node.outputs),
            name=self._free(f"{node.name}_layer{layer.index}") if node.name else None,
            metadata_props=inherited(node.name or "", node.metadata_props),
        )
        for new, old, name in zip(made.outputs, node.outputs, names, strict=True):
            new.name, new.type = self._free(name), old.type
        self._unnamed |= set(made.outputs)
        self._graph.insert_after(node, made)
        return made

    def _part(self, part: Part, source: ir.Value | None, node: ir.Node) -> ir.Value | None:
        """The value for an input of `node`, which has `source` there now."""
        if isinstance(part, np.ndarray):
            return self._constant(part, f"{node.name or node.op_type}_for_layer")
        if source is not None and isinstance(part, Layer):
            return self._layer(source, part)
        if source is not None and isinstance(part, Squeezed):
            return self._squeezed(source, part.axis, node)
        return part if isinstance(part, ir.Value) else None

    def _squeezed(self, value: ir.Value, axis: int, reader: ir.Node) -> ir.Value:
        """`value`, of length 1 on `axis`, without the axis."""
        maker = value.producer()
        if maker is not None and maker.op_type == "Unsqueeze" and len(maker.inputs) == 2:
            axes = constant(maker.inputs[1])
            if axes is not None and [int(i) % len(value.shape or ()) for i in axes.reshape(-1)] == [axis]:
                assert maker.inputs[0] is not None
                return maker.inputs[0]
        axes_value = self._constant(np.array([axis], np.int64), f"{value.name}_axes")
        squeeze = self._node("Squeeze", [value, axes_value], value)
        self._graph.insert_before(reader, squeeze)
        return squeeze.outputs[0]

    def _node(self, op_type: str, inputs: Sequence[ir.Value], like: ir.Value) -> ir.Node:
        """A node of one output, of the type of `like`, not yet in the graph."""
        name = f"{like.name}_{op_type.lower()}"
        node = ir.Node("", op_type, inputs, num_outputs=1, name=self._free(name))
        node.outputs[0].name = self._free(f"{name}_output")
        node.outputs[0].type = like.type
        self._unnamed.add(node.outputs[0])
        return node

    def _constant(self, array: NDArray[Any], name: str) -> ir.Value:
        name = self._free(name)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self._graph.register_initializer(value)
        return value

    def _free(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _squeezes(node: ir.Node, axis: int) -> bool:
    """Whether a node only takes this axis away, which has length 1."""
    if node.op_type != "Squeeze" or len(node.inputs) < 2 or node.inputs[0] is None:
        return False
    axes = constant(node.inputs[1])
    rank = len(node.inputs[0].shape or ())
    return axes is not None and bool(rank) and [int(i) % rank for i in axes.reshape(-1)] == [axis]


def _entry(array: NDArray[Any], layer: Layer) -> NDArray[Any]:
    if not layer.leading:
        return np.ascontiguousarray(np.take(array, layer.index, layer.axis))
    rows = array.shape[layer.axis] // layer.length
    return np.ascontiguousarray(
        np.take(array, range(layer.index * rows, (layer.index + 1) * rows), layer.axis)
    )


def _attribute(name: str, value: int | Sequence[int]) -> ir.Attr:
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, list(value))
