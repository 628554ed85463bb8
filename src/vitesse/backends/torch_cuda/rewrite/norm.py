"""LayerNormalization over the last axis, with the sum in front of it → `Norm`."""

from __future__ import annotations

import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import float_of, shape_of, without_batch
from vitesse.backends.torch_cuda.rewrite.nodes import (
    attribute,
    constant,
    given,
    initializer,
    is_op,
    needed,
    nodes_of,
    take_over,
)
from vitesse.backends.torch_cuda.rewrite.reasons import LeftAlone, Notes
from vitesse.backends.torch_cuda.steps import DOMAIN
from vitesse.scopes import inherited


def norm(model: ir.Model, notes: Notes | None = None) -> int:
    """Make `Norm` of every LayerNormalization over the last axis, in place; returns how many.

    A sum in front of it that no layer took as its residual is computed by the step, which has a second output for
    those who read the sum, too.
    """
    notes = Notes() if notes is None else notes
    made = 0
    for node in nodes_of(model, "LayerNormalization"):
        try:
            weight, bias = _parameters(node)
        except LeftAlone as reason:
            notes[f"norm: {reason}"] += 1
            continue
        total = needed(node, 0)
        parts = _summands(model, total)
        if parts is None:
            _put(model, node, [total, weight, bias], None)
        else:
            x, residual = parts
            _put(model, node, [x, weight, bias, residual], total.producer())
        made += 1
    return made


def _parameters(node: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    """Weight and bias; raises LeftAlone where the step cannot do what the operator does."""
    x, weight, bias = needed(node, 0), needed(node, 1), given(node, 2)
    float_of(x)
    axes = len(shape_of(x))
    if attribute(node, "axis", -1) % axes != axes - 1:
        raise LeftAlone(f"it is over the axes from {attribute(node, 'axis', -1)} on, not over the last")
    for parameter in (weight, bias):
        if parameter is None:
            continue
        if (
            constant(parameter) is None
            or shape_of(parameter) != shape_of(x)[-1:]
            or parameter.dtype != x.dtype
        ):
            raise LeftAlone("weight or bias is computed, of another type, or not one number a channel")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise LeftAlone("the mean or the deviation is read")
    return weight, bias


def _summands(model: ir.Model, total: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """x and residual of the sum that is normalised; None where it is no sum, or of another kind."""
    add = total.producer()
    if add is None or not is_op(add, "Add"):
        return None
    shape = shape_of(total)
    for x, other in (add.inputs, tuple(reversed(add.inputs))):
        if x is None or other is None or shape_of(x) != shape or constant(x) is not None:
            continue
        array = constant(other)
        if array is not None:
            shared = without_batch(array)
            if shared.shape != array.shape:
                other = initializer(model, f"{other.name}_shared", shared)
        residual = shape_of(other)
        if len(residual) > 1 and residual == shape[len(shape) - len(residual) :]:
            return x, other
    return None


def _put(model: ir.Model, node: ir.Node, inputs: list[ir.Value | None], add: ir.Node | None) -> None:
    """Write the step; it stands where the sum stood, for others may read the sum before the norm is computed."""
    while inputs[-1] is None:
        inputs.pop()
    made = ir.node(
        "Norm",
        inputs,
        {"epsilon": float(attribute(node, "epsilon", 1e-5)), "out_scale": 0.0},
        domain=DOMAIN,
        num_outputs=3,
        name=node.name,
        metadata_props=inherited(node.name or "", node.metadata_props),
    )
    for unread in made.outputs:
        unread.name = ""
    model.graph.insert_before(node if add is None else add, made)
    take_over(node.outputs[0], made.outputs[0])
    if add is not None and (len(add.outputs[0].uses()) > 1 or add.outputs[0].is_graph_output()):
        take_over(add.outputs[0], made.outputs[1])
    model.graph.remove([node] if add is None else [node, add], safe=True)
    model.graph.opset_imports.setdefault(DOMAIN, 1)
