"""Taking queries out of a graph whose query axis is known: constants are cut, selections take fewer, shapes follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.compress.query_axis import QueryAxis, trace
from vitesse.compress.query_rules import Place
from vitesse.fusion.layer_parts import named
from vitesse.fusion.rules import LeftAlone, constant
from vitesse.scopes import inherited

# Which input says the shape of the result.
_SHAPE_OPERAND = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}


def keep_queries(model: ir.Model, found: QueryAxis, kept: Sequence[int]) -> Counter[str]:
    """Keep the queries of these numbers, ascending, and drop all others, in place; return what was changed.

    Queries that a TopK selects come in the order of their scores: then `kept` must be the first ones.

    Raises:
        LeftAlone: where queries are selected, others than the first ones are to be kept; or a shape is not constant.
    """
    if found.sources and list(kept) != list(range(len(kept))):
        raise LeftAlone("selected queries have no number of their own: only the first can be kept")
    counts = Counter(constants_cut=0, selections_lowered=0, shapes_changed=0)
    for node, index, place in found.constants:
        _cut(model.graph, node, index, _taken(_array(node, index), place, found.queries, kept))
        counts["constants_cut"] += 1
    for node in found.sources:
        _cut(model.graph, node, 1, np.array([len(kept)], np.int64))
        counts["selections_lowered"] += 1
    for value, places in found.places.items():
        for place in places:
            counts["shapes_changed"] += _change_literal(model.graph, value, place, found.queries, len(kept))
            _shorten(value, place.axis, found.queries, len(kept))
    for node in found.selections:
        counts.update(_lower_selection(model, node))
    return counts


def _array(node: ir.Node, index: int) -> NDArray[Any]:
    array = constant(node.inputs[index])
    assert array is not None
    return array


def _taken(array: NDArray[Any], place: Place, queries: int, kept: Sequence[int]) -> NDArray[Any]:
    """The entries of the kept queries, where the axis has (outer · queries · inner) of them."""
    before, after = array.shape[: place.axis], array.shape[place.axis + 1 :]
    apart = array.reshape(*before, -1, queries, place.inner, *after)
    return np.take(apart, kept, place.axis + 1).reshape(*before, -1, *after)


def _cut(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[Any]) -> None:
    """Give one reader of a constant another one; other readers may see no queries in it."""
    old = node.inputs[index]
    name = f"{'' if old is None else old.name}_kept"
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    node.replace_input_with(index, value)


def _change_literal(graph: ir.Graph, value: ir.Value, place: Place, queries: int, kept: int) -> bool:
    """Change the length that the operand of a Reshape or Expand says for the axis, where it says one."""
    node = value.producer()
    operand = None if node is None else _SHAPE_OPERAND.get(node.op_type)
    shape = None if node is None or operand is None else node.inputs[operand]
    if node is None or operand is None or shape is None or value.shape is None:
        return False
    given = shape.shape[0] if shape.shape is not None else None
    if not isinstance(given, int):
        raise LeftAlone(f"how many axes {named(node)} makes is not known")
    reader, index, at = _said_by(node, operand, place.axis - len(value.shape) + given)
    numbers = constant(reader.inputs[index])
    # What is computed at run time, -1 and 0 follow by themselves; Expand's 1 leaves the axis as it is.
    if numbers is None or int(numbers[at]) != value.shape[place.axis] or int(numbers[at]) == 1:
        return False
    changed = numbers.copy()
    changed[at] = changed[at] // queries * kept
    if reader is not node:
        reader = _own_copy(graph, node, operand, reader)
    _cut(graph, reader, index, changed)
    return True


def _said_by(node: ir.Node, operand: int, at: int) -> tuple[ir.Node, int, int]:
    """Who reads the number `at` of a shape, the node or the Concat that joins the shape; which input; which place."""
    value = node.inputs[operand]
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Concat":
        return node, operand, at
    for index, piece in enumerate(maker.inputs):
        length = piece.shape[0] if piece is not None and piece.shape is not None else None
        if not isinstance(length, int):
            raise LeftAlone(f"the parts of the shape that {named(maker)} joins are not known")
        if at < length:
            return maker, index, at
        at -= length
    raise LeftAlone(f"{named(maker)} joins fewer numbers than {named(node)} has axes")


def _own_copy(graph: ir.Graph, node: ir.Node, operand: int, maker: ir.Node) -> ir.Node:
    """A Concat like `maker` for this reader alone, in front of it."""
    copied = ir.Node(
        "",
        "Concat",
        maker.inputs,
        maker.attributes.values(),
        name=f"{node.name}_shape",
        metadata_props=inherited(maker.name or "", maker.metadata_props),
    )
    copied.outputs[0].name = f"{node.outputs[0].name}_shape"
    copied.outputs[0].type, copied.outputs[0].shape = maker.outputs[0].type, maker.outputs[0].shape
    graph.insert_before(node, copied)
    node.replace_input_with(operand, copied.outputs[0])
    return copied


def _shorten(value: ir.Value, axis: int, queries: int, kept: int) -> None:
    """Note the new length; where it is a product with an open axis, inference finds it again."""
    shape = list(value.shape or ())
    length = shape[axis]
    shape[axis] = length // queries * kept if isinstance(length, int) else ir.SymbolicDim(None)
    value.shape = ir.Shape(shape)


def _lower_selection(model: ir.Model, node: ir.Node) -> Counter[str]:
    """Let a TopK take no more than there is; what its results lead to becomes as short."""
    given, wanted = node.inputs[0], constant(node.inputs[1])
    assert given is not None and given.shape is not None and wanted is not None
    axis = (node.attributes.get_int("axis", -1) or 0) % len(given.shape)
    there, count = given.shape[axis], int(wanted.item())
    if not isinstance(there, int) or count <= there:
        return Counter()
    return keep_queries(model, trace([(output, axis) for output in node.outputs], count), range(there))
