"""Where the heads of queries, keys and values lie in the tensor that a layer wrote, [B, S, width]."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import shape_of
from vitesse.backends.torch_cuda.rewrite.nodes import initializer, is_op
from vitesse.backends.torch_cuda.rewrite.places import VIEWS, places_of, same, start, viewed
from vitesse.backends.torch_cuda.rewrite.views import RESHAPES
from vitesse.scopes import inherited

# Order of axes: batch, sequence, channels; batch, heads, sequence, size; the same with the last two turned.
PACKED, HEADS_FIRST, KEYS_TURNED = "bsc", "bhsd", "bhds"
_TO_HEADS: Mapping[str, tuple[int, ...]] = {HEADS_FIRST: (0, 2, 1, 3), KEYS_TURNED: (0, 2, 3, 1)}
_FROM_HEADS: Mapping[str, tuple[int, ...]] = {HEADS_FIRST: (0, 2, 1, 3), KEYS_TURNED: (0, 3, 1, 2)}

_Chain = list[tuple[ir.Node, ir.Value]]


def packed(
    model: ir.Model, value: ir.Value, form: str, heads: int, size: int, at: ir.Node
) -> tuple[ir.Value, int]:
    """Return a tensor [B, S, width] and the channel from which on it holds `value`, head by head.

    It is looked for behind Reshape, Transpose, Slice, Split and Gather. Where these do more than name channels of one
    tensor, the heads are written side by side, in front of the node `at`.

    Args:
        value: queries, keys or values.
        form: the order of its axes.
        heads, size: how many heads it has, and of how many channels.
    """
    chain: _Chain = []
    read: ir.Value | None = value
    while read is not None and (node := read.producer()) is not None and is_op(node, *VIEWS):
        chain.insert(0, (node, read))
        read = node.inputs[0]
    for position, (node, _) in enumerate(chain):
        base = node.inputs[0]
        if base is not None and len(shape_of(base)) == 3:
            offset = _offset(shape_of(base), chain[position:], form, heads, size)
            if offset is not None:
                return base, offset
    return (value, 0) if form == PACKED else (_side_by_side(model, value, form, at), 0)


def packing_behind(value: ir.Value) -> list[ir.Node]:
    """The Reshape and Transpose behind [B, H, S, D] that write its heads side by side, [B, S, H · D]; else []."""
    batch, heads, length, size = shape_of(value)
    places = places_of((batch, length, heads, size))
    seen, nodes = places.transpose(_TO_HEADS[HEADS_FIRST]), []
    while not value.is_graph_output() and len(value.uses()) == 1:
        node = next(iter(value.uses())).node
        if not is_op(node, "Transpose", *RESHAPES):
            break
        made = viewed(seen, node, node.outputs[0])
        if made is None:
            break
        nodes.append(node)
        seen, value = made, node.outputs[0]
        if same(seen, places.reshape(batch, length, heads * size)):
            return nodes
    return []


def pack_and_unpack(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    """Write the heads [B, H, S, D] of a node side by side and, for what reads them, back; returns the first two nodes.

    The second of them makes [B, S, H · D], and the heads behind have the name that the node's output had.
    """
    old = node.outputs[0]
    batch, heads, length, size = shape_of(old)
    name, old.name = old.name or "heads", f"{old.name}_computed"
    by_position = _turned(old, HEADS_FIRST, _FROM_HEADS, f"{name}_by_position", node, after=node)
    first = by_position.producer()
    assert first is not None
    side = _reshaped(model, by_position, (batch, length, heads * size), f"{name}_packed", node, after=first)
    second = side.producer()
    assert second is not None
    split = _reshaped(model, side, (batch, length, heads, size), f"{name}_split", node, after=second)
    third = split.producer()
    assert third is not None
    again = _turned(split, HEADS_FIRST, _TO_HEADS, name, node, after=third)
    ir.convenience.replace_all_uses_with(old, again, replace_graph_outputs=True)
    first.replace_input_with(0, old)
    return [first, second]


def _offset(shape: tuple[int, ...], chain: _Chain, form: str, heads: int, size: int) -> int | None:
    """The channel of a tensor from which on the chain's result is its heads; None where it is not."""
    batch, length, width = shape
    places = places_of(shape)
    seen = places
    for node, output in chain:
        made = viewed(seen, node, output)
        if made is None:
            return None
        seen = made
    offset = start(seen) - start(places)
    if not 0 <= offset <= width - heads * size:
        return None
    part = places[:, :, offset : offset + heads * size]
    if form != PACKED:
        part = part.reshape(batch, length, heads, size).transpose(_TO_HEADS[form])
    return offset if same(part, seen) else None


def _side_by_side(model: ir.Model, value: ir.Value, form: str, at: ir.Node) -> ir.Value:
    turned = _turned(value, form, _FROM_HEADS, f"{value.name}_by_position", at)
    batch, length, heads, size = shape_of(turned)
    return _reshaped(model, turned, (batch, length, heads * size), f"{value.name}_packed", at)


def _turned(
    value: ir.Value,
    form: str,
    orders: Mapping[str, tuple[int, ...]],
    name: str,
    at: ir.Node,
    after: ir.Node | None = None,
) -> ir.Value:
    order = orders[form]
    node = ir.node("Transpose", [value], {"perm": order}, name=f"{name}_transpose")
    return _placed(node, value, tuple(shape_of(value)[axis] for axis in order), name, at, after)


def _reshaped(
    model: ir.Model,
    value: ir.Value,
    shape: tuple[int, ...],
    name: str,
    at: ir.Node,
    after: ir.Node | None = None,
) -> ir.Value:
    wanted = initializer(model, f"{name}_shape", np.asarray(shape, np.int64))
    return _placed(ir.node("Reshape", [value, wanted], name=f"{name}_reshape"), value, shape, name, at, after)


def _placed(
    node: ir.Node, like: ir.Value, shape: tuple[int, ...], name: str, at: ir.Node, after: ir.Node | None
) -> ir.Value:
    """Put a node of the module of `at` in front of it, or behind `after`; returns what it makes."""
    output, graph = node.outputs[0], at.graph
    output.name, output.shape, output.type = name, ir.Shape(shape), like.type
    node.metadata_props.update(inherited(at.name or "", at.metadata_props))
    assert graph is not None
    if after is None:
        graph.insert_before(at, node)
    else:
        graph.insert_after(after, node)
    return output
