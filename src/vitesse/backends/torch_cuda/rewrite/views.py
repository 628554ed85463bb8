"""What only renames axes: chains of Reshape and Transpose that say the same in one operator, or in none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import number, shape_of
from vitesse.backends.torch_cuda.rewrite.nodes import (
    attribute,
    bypass,
    constant,
    given,
    initializer,
    is_op,
    needed,
    nodes_of,
)
from vitesse.scopes import inherited

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def views(model: ir.Model) -> int:
    """Join and remove Reshape, Flatten, Squeeze, Unsqueeze and Transpose in place; returns how many that changed.

    A Transpose that moves axes of length 1 alone is a Reshape; a chain of Reshapes is the last one, and none where its
    shape is the first one's; two Transposes are one. A Gather of one constant place, as of the class token, is a Slice:
    Gather copies, a Slice is read where it is.
    """
    picked = sum(_sliced(model, node) for node in nodes_of(model, "Gather"))
    return picked + sum(_simplified(model, node) for node in nodes_of(model, "Transpose", *RESHAPES))


def _simplified(model: ir.Model, node: ir.Node) -> bool:
    given, output = needed(node, 0), node.outputs[0]
    x = given
    if is_op(node, "Transpose"):
        perm, before = permutation(node), x.producer()
        if before is not None and is_op(before, "Transpose"):
            first = permutation(before)
            x, perm = needed(before, 0), tuple(first[axis] for axis in perm)
        moved = [axis for axis in perm if shape_of(x)[axis] != 1]
        if moved != sorted(moved):
            if x is not given:
                _replace(model, node, "Transpose", [x], [ir.AttrInt64s("perm", perm)])
            return x is not given
    while (before := x.producer()) is not None and is_op(before, *RESHAPES):
        x = needed(before, 0)
    if shape_of(x) == shape_of(output):
        if not output.is_graph_output():  # which has to keep its name
            bypass(model, node, x)
            return True
        return False
    if is_op(node, "Reshape") and x is given:
        return False
    wanted = initializer(model, f"{output.name}_shape", np.asarray(shape_of(output), np.int64))
    _replace(model, node, "Reshape", [x, wanted], [])
    return True


def _sliced(model: ir.Model, gather: ir.Node) -> bool:
    x, place, output = needed(gather, 0), number(given(gather, 1)), gather.outputs[0]
    if place is None or constant(x) is not None:
        return False
    axis = int(attribute(gather, "axis", 0))
    length = shape_of(x)[axis]
    first = int(place) % length
    limits = [
        initializer(model, f"{output.name}_{name}", np.asarray([at], np.int64))
        for name, at in (("start", first), ("end", first + 1), ("axis", axis))
    ]
    kept = list(shape_of(x))
    kept[axis] = 1
    part = ir.node("Slice", [x, *limits], name=gather.name, metadata_props=dict(gather.metadata_props))
    made = part.outputs[0]
    made.name, made.type, made.shape = f"{output.name}_slice", output.type, ir.Shape(kept)
    model.graph.insert_before(gather, part)
    wanted = initializer(model, f"{output.name}_shape", np.asarray(shape_of(output), np.int64))
    _replace(model, gather, "Reshape", [made, wanted], [])
    return True


def permutation(transpose: ir.Node) -> tuple[int, ...]:
    """The order of axes that a Transpose makes; without an attribute it turns all around."""
    axes = range(len(shape_of(needed(transpose, 0))))
    return tuple(int(axis) for axis in attribute(transpose, "perm", tuple(reversed(axes))))


def _replace(
    model: ir.Model, node: ir.Node, operator: str, inputs: list[ir.Value], keywords: list[ir.Attr]
) -> None:
    notes = inherited(node.name or "", node.metadata_props)
    made = ir.Node("", operator, inputs, keywords, num_outputs=1, name=node.name, metadata_props=notes)
    old, new = node.outputs[0], made.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    model.graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
