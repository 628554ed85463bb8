"""(x + P)·W with constant P → x·W + P·W: the layer reads x itself, and what P adds is a constant residual."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import (
    Array,
    Layer,
    dtype_named,
    float_of,
    shape_of,
    wide,
    without_batch,
)
from vitesse.backends.torch_cuda.rewrite.nodes import constant, initializer, is_step, nodes_of
from vitesse.backends.torch_cuda.rewrite.reasons import LeftAlone, Notes


def positions(model: ir.Model, notes: Notes | None = None) -> int:
    """Move constant positions from in front of `Linear` steps into their residuals, in place.

    P·W, and the bias with it, is computed in float64 and rounded once. It is done where the sum x + P is then read by
    nobody, or where another layer reads x itself, so that both can become one.

    Returns:
        How many layers read x instead of the sum.
    """
    notes = Notes() if notes is None else notes
    made = 0
    for add in nodes_of(model, "Add"):
        total = add.outputs[0]
        readers = [use.node for use in total.uses()]
        if not any(is_step(node, "Linear") and node.inputs[0] is total for node in readers):
            continue
        try:
            x, added = _parts(add)
            moved = {
                node: _moved(Layer.of(node), total, x, added)
                for node in dict.fromkeys(readers)
                if _able(node, total)
            }
            others = [use.node for use in x.uses() if is_step(use.node, "Linear") and use.idx == 0]
            if (len(moved) < len(readers) or total.is_graph_output()) and not others:
                raise LeftAlone("the sum is read elsewhere, too, and x by no other layer")
        except LeftAlone as reason:
            notes[f"positions: {reason}"] += 1
            continue
        for node, (layer, array) in moved.items():
            _put(model, node, layer, array)
        made += len(moved)
    return made


def _parts(add: ir.Node) -> tuple[ir.Value, Array]:
    """x and P of the sum: P without the batch, [S, K] or [K]; raises LeftAlone where there is none."""
    for x, other in (add.inputs, tuple(reversed(add.inputs))):
        array = constant(other)
        if x is None or array is None:
            continue
        float_of(x)
        if shape_of(x) != shape_of(add.outputs[0]):
            raise LeftAlone("the positions are broadcast over more than the batch")
        shared, shape = without_batch(array), shape_of(x)
        if shared.ndim > 1 and shared.shape != shape[len(shape) - shared.ndim :]:
            raise LeftAlone(
                f"positions of {array.shape} are broadcast to {shape} in another way than over the batch"
            )
        if shared.ndim == len(shape):
            raise LeftAlone("every image has positions of its own")
        return x, np.broadcast_to(shared, (*shared.shape[:-1], shape[-1]))
    raise LeftAlone("what is added in front of a layer is computed")


def _able(node: ir.Node, total: ir.Value) -> bool:
    """Whether a reader is a layer with room for a constant residual in front of its activation."""
    if not is_step(node, "Linear") or node.inputs[0] is not total or node.inputs[1:].count(total):
        return False
    layer = Layer.of(node)
    return layer.scale is None and layer.residual is None


def _moved(layer: Layer, total: ir.Value, x: ir.Value, added: Array) -> tuple[Layer, Array]:
    """The layer of x, and what it adds: P·W + bias, [S, N] or [N], of the type of its output."""
    weight, bias = constant(layer.weight), constant(layer.bias)
    assert weight is not None
    product = wide(added) @ wide(weight)
    if bias is not None:
        product = product + wide(bias)
    with np.errstate(over="ignore"):
        rounded = product.astype(dtype_named(layer.out_dtype))
    if not np.isfinite(wide(rounded)).all():
        raise LeftAlone(f"what the positions add exceeds {layer.out_dtype}")
    return replace(layer, x=x, bias=None), rounded


def _put(model: ir.Model, node: ir.Node, layer: Layer, array: Array) -> None:
    made = initializer(model, f"{node.outputs[0].name}_positions", array)
    bias, residual = (made, None) if array.ndim == 1 else (None, made)
    layer = replace(layer, bias=bias, residual=residual, residual_first=1)
    layer.put(model, [node])
