"""The patch embedding of a Vision Transformer, with the tokens before the patches and the positions → `Patches`.

A convolution whose kernel is its stride, the image of patches as a row, and then, in any order, constants in front of
the patches and constants added to all: a class token by Concat or by Pad with the token among the positions, registers,
positions for the patches alone or for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.conv import convolves_plane, padding
from vitesse.backends.torch_cuda.rewrite.layer import Array, float_of, shape_of, wide
from vitesse.backends.torch_cuda.rewrite.layer import number as number_of
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    attribute,
    constant,
    given,
    initializer,
    is_op,
    needed,
    nodes_of,
    other_input,
    put_step,
    sole_reader,
)


@dataclass(frozen=True)
class _Tokens:
    """What is known of the tokens behind some nodes, in float64: those in front [P, D], and what is added [N, D]."""

    front: Array
    added: Array
    nodes: tuple[ir.Node, ...]

    @property
    def value(self) -> ir.Value:
        """The tensor of all tokens, [B, P + N, D]."""
        return self.nodes[-1].outputs[0]


def patches(model: ir.Model) -> int:
    """Rewrite the patch embeddings of a graph, in place; returns how many.

    Left alone: patches that overlap, are no squares or lie in a padded image; a convolution whose result is also read
    as an image; constants behind the patches or different for the images of a batch stay outside of the step.
    """
    made = 0
    for node in nodes_of(model, "Conv"):
        tokens = _embedded(node)
        if tokens is None:
            continue
        while (longer := _longer(tokens)) is not None:
            tokens = longer
        _put(model, node, tokens)
        made += 1
    return made


def _put(model: ir.Model, node: ir.Node, tokens: _Tokens) -> None:
    weight, name = needed(node, 1), tokens.value.name
    values = constant(weight)
    assert values is not None  # `_embedded` asked
    kind = values.dtype
    constants = [
        initializer(model, f"{name}_tokens", tokens.front.astype(kind)),
        initializer(model, f"{name}_positions", tokens.added.astype(kind)),
    ]
    image, cast = needed(node, 0), needed(node, 0).producer()
    nodes = tokens.nodes
    # The step rounds the image to the type of the weight itself.
    if cast is not None and is_op(cast, "Cast") and needed(cast, 0).dtype in FLOATS:
        image = needed(cast, 0)
        nodes = (cast, *nodes) if sole_reader(cast.outputs[0]) is node else nodes
    keywords = {"patch": values.shape[-1], "out_dtype": float_of(tokens.value)}
    put_step(model, "Patches", [image, weight, *constants], keywords, nodes, named=node)


def _embedded(node: ir.Node) -> _Tokens | None:
    """The patches of a convolution as a row, with its bias for the positions; None where it is no patch embedding."""
    weight, bias = constant(needed(node, 1)), constant(given(node, 2))
    if weight is None or not convolves_plane(node) or needed(node, 0).dtype not in FLOATS:
        return None
    width, _, height, size = weight.shape
    if size == 1 or height != size or attribute(node, "strides", (1, 1)) != (size, size):
        return None
    image = shape_of(needed(node, 0))
    cut = any(length % size for length in image[2:]) or any(padding(node))
    if cut or max(attribute(node, "dilations", (1, 1))) > 1 or attribute(node, "group", 1) > 1:
        return None
    row = _row(node)
    if row is None:
        return None
    count = (image[2] // size) * (image[3] // size)
    if shape_of(row[-1].outputs[0]) != (image[0], count, width):
        return None
    added = np.zeros((count, width)) if bias is None else np.tile(wide(bias), (count, 1))
    return _Tokens(np.zeros((0, width)), added, (node, *row))


def _row(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The Reshape and the Transpose (in either order) that make a row of patches, rows first, of an image of them."""
    one = sole_reader(node.outputs[0])
    two = None if one is None else sole_reader(one.outputs[0])
    if one is None or two is None:
        return None
    if is_op(one, "Reshape") and is_op(two, "Transpose"):  # by way of [B, D, N]
        apart = shape_of(one.outputs[0])[:2] == shape_of(node.outputs[0])[:2]
        return (one, two) if apart and attribute(two, "perm", ()) == (0, 2, 1) else None
    if is_op(one, "Transpose") and is_op(two, "Reshape"):  # by way of [B, H, W, D]
        return (one, two) if attribute(one, "perm", ()) == (0, 2, 3, 1) else None
    return None


def _longer(tokens: _Tokens) -> _Tokens | None:
    """The tokens behind one more node, where it does what a `Patches` step can do."""
    node = sole_reader(tokens.value)
    if node is None or node.outputs[0].dtype != tokens.value.dtype:
        return None
    if is_op(node, "Add"):
        return _with_positions(tokens, node)
    if is_op(node, "Concat"):
        return _with_front(tokens, node)
    return _with_zeros(tokens, node) if is_op(node, "Pad") else None


def _with_positions(tokens: _Tokens, node: ir.Node) -> _Tokens | None:
    other = other_input(node, tokens.value)
    values, shape = constant(other), shape_of(tokens.value)
    if values is None or shape_of(node.outputs[0]) != shape:
        return None
    rows = _for_every_image(np.broadcast_to(wide(values), shape))
    if rows is None:
        return None
    ahead = len(tokens.front)
    return _Tokens(tokens.front + rows[:ahead], tokens.added + rows[ahead:], (*tokens.nodes, node))


def _with_front(tokens: _Tokens, node: ir.Node) -> _Tokens | None:
    if attribute(node, "axis", 0) not in (1, -2):
        return None
    # Where all but the last are constant, the last are the tokens so far.
    fronts = [constant(value) for value in node.inputs[:-1]]
    rows = [None if front is None else _for_every_image(wide(front)) for front in fronts]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return None
    return _Tokens(np.concatenate([*known, tokens.front]), tokens.added, (*tokens.nodes, node))


def _with_zeros(tokens: _Tokens, node: ir.Node) -> _Tokens | None:
    before, after = shape_of(tokens.value), shape_of(node.outputs[0])
    pads, axes, filling = constant(given(node, 1)), given(node, 3), given(node, 2)
    if pads is None or axes is not None or attribute(node, "mode", "constant") != "constant":
        return None
    front = int(pads[1])
    alone = front >= 0 and pads.tolist() == [0, front, 0, 0, 0, 0]
    if not alone or (filling is not None and number_of(filling) != 0) or after[1] != before[1] + front:
        return None
    zeros = np.zeros((front, before[2]))
    return _Tokens(np.concatenate([zeros, tokens.front]), tokens.added, (*tokens.nodes, node))


def _for_every_image(values: Array) -> Array | None:
    """[B, T, D] without its first axis; None where the images of a batch differ."""
    return values[0] if values.ndim == 3 and bool((values == values[:1]).all()) else None
