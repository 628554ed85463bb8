"""MatMul → scale → mask → Softmax → MatMul on four axes: attention where nobody wrote it as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import number, shape_of
from vitesse.backends.torch_cuda.rewrite.nodes import attribute, is_op, needed, sole_reader
from vitesse.backends.torch_cuda.rewrite.packing import HEADS_FIRST, KEYS_TURNED


@dataclass(frozen=True)
class Scores:
    """What is computed around a Softmax: q and v [B, H, S, D], k [B, H, D, S], and the nodes that do it, in order."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    scale: float
    mask: ir.Value | None
    nodes: Sequence[ir.Node]

    @property
    def forms(self) -> tuple[str, str, str]:
        """The order of axes of q, k and v."""
        return HEADS_FIRST, KEYS_TURNED, HEADS_FIRST


def of_softmax(softmax: ir.Node) -> Scores | None:
    """Read the nodes around a Softmax; None where it is another one, as that of a classifier.

    The scale may stand at the scores or at the queries or keys. The Softmax may stand between Casts, for the step
    computes it in float32 anyhow. Nothing else may read what lies between.
    """
    axes = len(shape_of(needed(softmax, 0)))
    if axes != 4 or int(attribute(softmax, "axis", -1)) % axes != axes - 1:
        return None
    behind = _and_cast_behind(softmax)
    product = sole_reader(behind[-1].outputs[0])
    if product is None or not is_op(product, "MatMul") or product.inputs[0] is not behind[-1].outputs[0]:
        return None
    before, node = _scored(softmax)
    if node is None or not is_op(node, "MatMul"):
        return None
    mask, scale, nodes = before
    (q, q_scale), (k, k_scale) = _unscaled(needed(node, 0)), _unscaled(needed(node, 1))
    v = needed(product, 1)
    if any(len(shape_of(value)) != 4 for value in (q, k, v)):
        return None
    return Scores(q, k, v, scale * q_scale * k_scale, mask, [node, *nodes, *behind, product])


def _and_cast_behind(softmax: ir.Node) -> list[ir.Node]:
    reader = sole_reader(softmax.outputs[0])
    return [softmax, reader] if reader is not None and is_op(reader, "Cast") else [softmax]


def _scored(softmax: ir.Node) -> tuple[tuple[ir.Value | None, float, list[ir.Node]], ir.Node | None]:
    """((mask, scale, nodes in front of the Softmax), what makes the unscaled scores)."""
    mask, scale, nodes = None, 1.0, list[ir.Node]()
    node = _only_for(needed(softmax, 0))
    while node is not None:
        factor = _factor(node)
        if is_op(node, "Cast"):
            read = needed(node, 0)
        elif is_op(node, "Add") and mask is None and scale == 1.0:
            read, mask = _masked(node)
        elif factor is not None:
            read, scale = needed(node, factor[0]), scale * factor[1]
        else:
            break
        nodes.insert(0, node)
        node = _only_for(read)
    return (mask, scale, nodes), node


def _masked(add: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Scores and mask of a sum: the scores lead back to a product."""
    one, other = needed(add, 0), needed(add, 1)
    maker = one.producer()
    return (
        (one, other) if maker is not None and is_op(maker, "MatMul", "Mul", "Div", "Cast") else (other, one)
    )


def _factor(node: ir.Node) -> tuple[int, float] | None:
    """(place of the other input, factor) of a multiplication by or a division by one number; else None."""
    if is_op(node, "Mul"):
        for place in (0, 1):
            factor = number(needed(node, 1 - place))
            if factor is not None:
                return place, factor
    if is_op(node, "Div") and (divisor := number(needed(node, 1))):
        return 0, 1.0 / divisor
    return None


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """A value without the factor it was multiplied by, and that factor; the multiplication goes if nobody needs it."""
    node = value.producer()
    factor = None if node is None else _factor(node)
    return (value, 1.0) if node is None or factor is None else (needed(node, factor[0]), factor[1])


def _only_for(value: ir.Value) -> ir.Node | None:
    """What makes a value that only one node reads."""
    return value.producer() if sole_reader(value) is not None else None
