"""How one entry of an axis passes upwards through an operator: which entries of its inputs it is made of.

Decoder layers are stacked on an axis, every head works on the whole stack, and one layer is picked at the end. The
rules here say for each operator what it takes to compute that one layer alone: they never change a number, only
leave out the rows that nobody reads. An operator that mixes the layers, or that has no rule, is a LeftAlone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vitesse.fusion.attention_selected import BINARY, ELEMENTWISE
from vitesse.fusion.layer_parts import Elsewhere, Layer, Part, Passage, Squeezed, named, shape_of
from vitesse.fusion.layer_reshape import same_product, through_reshape
from vitesse.fusion.rules import LeftAlone, constant


def through(node: ir.Node, layer: Layer) -> Passage | Elsewhere:
    """What computes `layer` of the output of `node`; raises LeftAlone with the reason why nothing does."""
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise LeftAlone(f"{named(node)} may mix the layers")
    if any(output.shape is None for output in node.outputs) or any(
        value is not None and value.shape is None for value in node.inputs
    ):
        raise LeftAlone(f"a shape at {named(node)} is not known")
    return rule(node, layer)


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _mixes(node: ir.Node) -> LeftAlone:
    return LeftAlone(f"{named(node)} mixes the layers")


def _broadcast(node: ir.Node, layer: Layer, values: Sequence[ir.Value | None]) -> tuple[Part, ...]:
    """Operands of an element-wise operator: those without the axis, or of length 1 there, serve all layers."""
    output = shape_of(node.outputs[0])
    parts: list[Part] = []
    for value in values:
        axis = -1 if value is None else layer.axis - len(output) + len(shape_of(value))
        if value is None or axis < 0:
            parts.append(value)
        elif shape_of(value)[axis] == 1:
            parts.append(value if layer.leading else Squeezed(axis))
        elif same_product(shape_of(value)[axis : axis + 1], output[layer.axis : layer.axis + 1]):
            parts.append(layer.at(axis))
        else:
            raise LeftAlone(f"the lengths of the operands of {named(node)} are not known to agree")
    return tuple(parts)


def _element_wise(node: ir.Node, layer: Layer) -> Passage:
    return Passage(_broadcast(node, layer, node.inputs))


def _matmul(node: ir.Node, layer: Layer) -> Passage:
    left, right = node.inputs
    rank = len(shape_of(node.outputs[0]))
    if min(len(shape_of(left)), len(shape_of(right))) < 2 or layer.axis == rank - 1:
        raise _mixes(node)
    if layer.axis < rank - 2:
        return Passage(_broadcast(node, layer, (left, right)))
    if not layer.leading:
        raise LeftAlone(f"the layers are the rows of {named(node)}")
    return Passage((layer.at(len(shape_of(left)) - 2), right))


def _gemm(node: ir.Node, layer: Layer) -> Passage:
    if layer.axis != 0 or not layer.leading or _int(node, "transA", 0):
        raise _mixes(node)
    added = node.inputs[2:]
    if any(value is not None and len(shape_of(value)) == 2 and shape_of(value)[0] != 1 for value in added):
        raise LeftAlone(f"{named(node)} adds other numbers to each row")
    return Passage((layer.at(0), *node.inputs[1:]))


def _normalisation(node: ir.Node, layer: Layer) -> Passage:
    """LayerNormalization and RMSNormalization: over the axes from `axis` on."""
    rank = len(shape_of(node.outputs[0]))
    axis = _int(node, "axis", -1) % rank
    if layer.axis >= axis or len(node.outputs) > 1:
        raise _mixes(node)
    parameters = _broadcast(node, layer, node.inputs[1:])
    return Passage((layer, *parameters), {"axis": axis - rank})


def _softmax(node: ir.Node, layer: Layer) -> Passage:
    version = node.version or (node.graph.opset_imports.get("", 0) if node.graph is not None else 0)
    axis = _int(node, "axis", -1) % len(shape_of(node.outputs[0]))
    # Below opset 13 it works on a matrix: everything from the axis on is normalised together.
    if axis == layer.axis or (version < 13 and axis < layer.axis):
        raise _mixes(node)
    return Passage((layer,), {"axis": _without(layer, axis)})


def _transpose(node: ir.Node, layer: Layer) -> Passage:
    rank = len(shape_of(node.outputs[0]))
    given = node.attributes.get("perm")
    perm = list(range(rank))[::-1] if given is None else list(given.as_ints())
    source = layer.at(perm[layer.axis])
    if not layer.leading:
        perm = [_without(source, axis) for axis in perm if axis != source.axis]
    return Passage((source,), {"perm": perm})


def _without(layer: Layer, axis: int) -> int:
    """Number of another axis once the layer's axis is gone."""
    return axis - (axis > layer.axis and not layer.leading)


def _constant_axes(node: ir.Node) -> list[int] | None:
    """The `axes` of a node, from its attribute or its second input; None when it has none."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    array = constant(node.inputs[1])
    if array is None:
        raise LeftAlone(f"the axes of {named(node)} are not constant")
    return [int(axis) for axis in array.reshape(-1)]


def _with_axes(node: ir.Node, source: Layer, axes: Iterable[int]) -> Passage:
    """The passage of a node that names axes as an attribute or as its second input."""
    ordered = sorted(axes)
    if "axes" in node.attributes or len(node.inputs) < 2:
        return Passage((source,), {"axes": ordered})
    return Passage((source, np.array(ordered, np.int64)))


def _unsqueeze(node: ir.Node, layer: Layer) -> Passage | Elsewhere:
    rank = len(shape_of(node.outputs[0]))
    axes = {axis % rank for axis in _constant_axes(node) or ()}
    if layer.axis in axes:
        raise _mixes(node)  # an axis of length 1 that a stack should have been found on
    source = layer.at(layer.axis - sum(axis < layer.axis for axis in axes))
    return _with_axes(node, source, (_without(layer, axis) for axis in axes))


def _kept_axis(layer: Layer, removed: Iterable[int], rank: int) -> int:
    """Axis of the input, of `rank` axes, that is the layer's axis of an output without `removed`."""
    gone = set(removed)
    return [axis for axis in range(rank) if axis not in gone][layer.axis]


def _squeeze(node: ir.Node, layer: Layer) -> Passage:
    source_shape = shape_of(node.inputs[0])
    given = _constant_axes(node)
    if given is None:
        given = [axis for axis, length in enumerate(source_shape) if length == 1]
    axes = {axis % len(source_shape) for axis in given}
    source = layer.at(_kept_axis(layer, axes, len(source_shape)))
    return _with_axes(node, source, (_without(source, axis) for axis in axes))


def _reduce(node: ir.Node, layer: Layer) -> Passage:
    rank = len(shape_of(node.inputs[0]))
    given = _constant_axes(node)
    if not given:
        raise _mixes(node)
    axes = {axis % rank for axis in given}
    keeps = _int(node, "keepdims", 1)
    source = layer if keeps else layer.at(_kept_axis(layer, axes, rank))
    if source.axis in axes:
        raise _mixes(node)
    return _with_axes(node, source, (_without(source, axis) for axis in axes))


def _concat(node: ir.Node, layer: Layer) -> Passage | Elsewhere:
    axis = node.attributes["axis"].as_int() % len(shape_of(node.outputs[0]))
    if axis != layer.axis:
        return Passage(tuple(layer for _ in node.inputs), {"axis": _without(layer, axis)})
    start = 0
    for value in node.inputs:
        length = shape_of(value)[axis]
        if layer.leading or not isinstance(length, int):
            break
        if value is not None and start <= layer.index < start + length:
            return Elsewhere(value, Layer(axis, layer.index - start, length))
        start += length
    raise _mixes(node)


def _split(node: ir.Node, layer: Layer) -> Passage:
    axis = _int(node, "axis", 0) % len(shape_of(node.inputs[0]))
    if axis == layer.axis:
        raise _mixes(node)
    return Passage((layer, *node.inputs[1:]), {"axis": _without(layer, axis)})


def _gather(node: ir.Node, layer: Layer) -> Passage | Elsewhere:
    data, indices = node.inputs
    assert data is not None and indices is not None
    axis = _int(node, "axis", 0) % len(shape_of(data))
    added = len(shape_of(indices))
    if layer.axis < axis:
        return Passage((layer, indices), {"axis": _without(layer, axis)})
    if layer.axis >= axis + added:
        return Passage((layer.at(layer.axis - added + 1), indices), {"axis": axis})
    array, length = constant(indices), shape_of(data)[axis]
    if array is None or array.ndim != 1 or layer.leading or not isinstance(length, int):
        raise _mixes(node)
    return Elsewhere(data, Layer(axis, int(array[layer.index]) % length, length))


def slice_places(node: ir.Node) -> dict[int, range]:
    """Which entries of each axis a Slice with constant bounds takes; raises LeftAlone."""
    shape = shape_of(node.inputs[0])
    bounds = [constant(value) for value in node.inputs[1:]]
    if len(bounds) < 2 or any(
        b is None and v is not None for b, v in zip(bounds, node.inputs[1:], strict=True)
    ):
        raise LeftAlone(f"the bounds of {named(node)} are not constant")
    starts, ends, axes, steps = (
        [int(i) for i in array.reshape(-1)] if array is not None else None
        for array in (*bounds, *(None,) * (4 - len(bounds)))
    )
    assert starts is not None and ends is not None
    axes = axes if axes is not None else list(range(len(starts)))
    places = {}
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        length = shape[axis % len(shape)]
        # An axis of unknown length matters only where it is the layers'; then it has no places.
        places[axis % len(shape)] = (
            range(*slice(start, end, step).indices(length)) if isinstance(length, int) else range(0)
        )
    return places


def _slice(node: ir.Node, layer: Layer) -> Passage | Elsewhere:
    data = node.inputs[0]
    assert data is not None
    places = slice_places(node)
    if layer.axis in places:
        length = shape_of(data)[layer.axis]
        if layer.leading or len(places) > 1 or not isinstance(length, int):
            raise _mixes(node)
        return Elsewhere(data, Layer(layer.axis, places[layer.axis][layer.index], length))
    axes = np.array([_without(layer, axis) for axis in places], np.int64)
    bounds = list(node.inputs[1:])
    steps = bounds[3:4]
    return Passage((layer, *bounds[:2], axes, *steps))


_Rule = Callable[[ir.Node, Layer], "Passage | Elsewhere"]
_MORE_ELEMENT_WISE = (
    *(
        "And",
        "Cos",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Log",
        "Mod",
        "Not",
        "Or",
    ),
    *(
        "PRelu",
        "Round",
        "Selu",
        "Sign",
        "Sin",
        "Softsign",
        "ThresholdedRelu",
        "Where",
        "IsNaN",
        "Celu",
        "Swish",
    ),
)
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys((*ELEMENTWISE, *BINARY, *_MORE_ELEMENT_WISE), _element_wise),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalisation),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2"), _reduce),
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": through_reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
