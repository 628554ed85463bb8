"""Auxiliary decoder layers → gone: the heads run on the one layer that is read, and on no stack of all of them.

Training code of DETR stacks the results of all decoder layers, applies the heads to the stack and picks the last layer
at the end. In the exported graph the heads then cost as many times what they should as there are layers, and
the trailing Gather makes TensorRT engines answer zeros. The pick moves up to the stack here, by structure: each
operator between them must treat the layers apart (`layer_axis`), and nothing else may read them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from vitesse.fusion.attention_selected import BINARY, ELEMENTWISE
from vitesse.fusion.layer_axis import slice_places, through
from vitesse.fusion.layer_parts import Layer, Passage, named
from vitesse.fusion.layer_rebuild import Rebuilding
from vitesse.fusion.rules import LeftAlone, constant

LAYERS, OUTPUTS = "auxiliary_layers", "auxiliary_outputs"
# How exporters and training code call the predictions of the inner decoder layers.
_AUXILIARY_NAMES = ("aux_outputs", "auxiliary_outputs", "auxiliary_loss")
# Once a Reshape has merged the layers with another axis, these leave them merged.
_KEEPS_MERGED = ELEMENTWISE | BINARY | {"Reshape", "Transpose"}


@dataclass(frozen=True)
class _Pick:
    """An operator output that is one layer of `stacked`; `keeps_axis`: as an axis of length 1."""

    picked: ir.Value
    stacked: ir.Value
    layer: Layer
    keeps_axis: bool


@dataclass
class _Cone:
    """What lies between picks and the stacks they are layers of.

    nodes: operators that treat the layers apart. stacks: the Concats → the inputs that are read of them.
    blocked: the operator that does not let a layer through, and why; then the rest is not complete.
    """

    picks: list[_Pick]
    nodes: set[ir.Node] = field(default_factory=set)
    stacks: dict[ir.Node, set[int]] = field(default_factory=dict)
    blocked: tuple[ir.Node, str] | None = None

    def is_complete(self) -> bool:
        """Whether all ways up end in stacks, and at least one does."""
        return self.blocked is None and any(is_stack(stack) for stack in self.stacks)

    def meets(self, other: _Cone) -> bool:
        """Whether both have an operator or a stack in common."""
        return bool(self.nodes & other.nodes or self.stacks.keys() & other.stacks.keys())

    def join(self, other: _Cone) -> None:
        """Take in what the other has."""
        self.picks += other.picks
        self.nodes |= other.nodes
        for stack, places in other.stacks.items():
            self.stacks.setdefault(stack, set()).update(places)


def pick_before_heads(model: ir.Model) -> tuple[int, tuple[str, ...]]:
    """Move picks of one layer up to the stack, in place; shapes must have been inferred.

    Returns:
        (how many picks were moved, distinct reasons why others were left alone).
    """
    stacks = [node for node in model.graph if is_stack(node)]
    if not stacks:
        return 0, ()
    reasons: dict[str, None] = {}
    cones: list[_Cone] = []
    layered = _layered_values(stacks)
    for pick in _picks(model.graph, reasons):
        cone = _cone_of(pick)
        if cone.is_complete():
            cones = _joined(cones, cone)
        elif cone.blocked is not None and layered.intersection(cone.blocked[0].inputs):
            reasons[cone.blocked[1]] = None
    moved = 0
    for cone in cones:
        why = _refusal(cone)
        if why:
            reasons[why] = None
            continue
        rebuilding = Rebuilding(model.graph)
        for pick in cone.picks:
            rebuilding.replace(pick.picked, pick.stacked, pick.layer, keeps_axis=pick.keeps_axis)
        moved += len(cone.picks)
    return moved, tuple(reasons)


def drop_outputs(model: ir.Model, keep: Collection[str]) -> int:
    """Drop graph outputs that are predictions of inner layers and not in `keep`, in place; return how many.

    Such an output is named so (`aux_outputs.0.logits`), is a stack of layers, or has the type and shape of an output
    that is kept. Shapes must have been inferred. Nothing is dropped where none of `keep` is an output.
    """
    outputs = list(model.graph.outputs)
    kept = [value for value in outputs if value.name in keep]
    if not kept:
        return 0
    dropped = [value for value in outputs if value not in kept and _is_auxiliary(value, kept)]
    for value in dropped:
        model.graph.outputs.remove(value)
    return len(dropped)


def _is_auxiliary(value: ir.Value, kept: Sequence[ir.Value]) -> bool:
    name = (value.name or "").lower()
    if any(part in name for part in _AUXILIARY_NAMES):
        return True
    if any(value.dtype == one.dtype and value.shape is not None and value.shape == one.shape for one in kept):
        return True
    return any(_is_layered(value, axis) for axis in range(len(value.shape or ())))


def _is_layered(value: ir.Value, axis: int) -> bool:
    """Whether `value` holds the layers of a stack along `axis`."""
    length = value.shape[axis] if value.shape is not None else None
    if not isinstance(length, int) or length < 1:
        return False
    return _cone_of(_Pick(value, value, Layer(axis, 0, length), keeps_axis=False)).is_complete()


def is_stack(node: ir.Node) -> bool:
    """Whether a Concat joins tensors that each have length 1 on its axis."""
    if node.op_type != "Concat" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return False
    axis = node.attributes["axis"].as_int()
    return all(
        value is not None and value.shape is not None and value.shape[axis] == 1 for value in node.inputs
    )


def _picks(graph: ir.Graph, reasons: dict[str, None]) -> Iterator[_Pick]:
    """Every operator output that is one entry of an axis; `reasons` hears of several entries picked from a stack."""
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
            continue
        finder = {"Gather": _gathered, "Slice": _sliced, "Split": _split_off}.get(node.op_type)
        if finder is None or node.inputs[0].shape is None:
            continue
        try:
            yield from finder(node, node.inputs[0], node.inputs[0].shape)
        except LeftAlone as reason:
            if is_stack(node.inputs[0].producer() or node) or _is_layered(node.inputs[0], _axis_of(node)):
                reasons[str(reason)] = None


def _axis_of(node: ir.Node) -> int:
    """The axis that a Gather, a Split or a Slice of one axis works on."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    rank = len(shape or ())
    if node.op_type == "Slice":
        return next(iter(slice_places(node)), 0)
    return (node.attributes.get_int("axis", 0) or 0) % max(rank, 1)


def _gathered(node: ir.Node, data: ir.Value, shape: ir.Shape) -> Iterator[_Pick]:
    axis = _axis_of(node)
    indices, length = constant(node.inputs[1]), shape[axis]
    if indices is None or not isinstance(length, int) or length < 2:
        return
    if indices.size != 1:
        raise LeftAlone(f"{named(node)} reads {indices.size} of {length} layers")
    if indices.ndim <= 1:
        layer = Layer(axis, int(indices.item()) % length, length)
        yield _Pick(node.outputs[0], data, layer, keeps_axis=indices.ndim == 1)


def _sliced(node: ir.Node, data: ir.Value, shape: ir.Shape) -> Iterator[_Pick]:
    try:
        places = slice_places(node)
    except LeftAlone:
        return
    if len(places) != 1:
        return
    ((axis, taken),) = places.items()
    length = shape[axis]
    if not isinstance(length, int) or length < 2 or not len(taken):
        return
    if len(taken) > 1:
        raise LeftAlone(f"{named(node)} reads {len(taken)} of {length} layers")
    yield _Pick(node.outputs[0], data, Layer(axis, taken[0], length), keeps_axis=True)


def _split_off(node: ir.Node, data: ir.Value, shape: ir.Shape) -> Iterator[_Pick]:
    axis = _axis_of(node)
    length, start = shape[axis], 0
    if not isinstance(length, int) or length < 2:
        return
    for output in node.outputs:
        size = None if output.shape is None else output.shape[axis]
        if not isinstance(size, int):
            return
        if size == 1 and (output.uses() or output.is_graph_output()):
            yield _Pick(output, data, Layer(axis, start, length), keeps_axis=True)
        start += size


def _cone_of(pick: _Pick) -> _Cone:
    """Follow a layer up to the stacks, or to an operator that mixes the layers."""
    cone = _Cone([pick])
    seen: set[tuple[ir.Value, Layer]] = set()
    todo = [(pick.stacked, pick.layer)]
    while todo:
        value, layer = todo.pop()
        if (value, layer) in seen or constant(value) is not None:
            continue
        seen.add((value, layer))
        node = value.producer()
        try:
            passage = through(node, layer) if node is not None else None
        except LeftAlone as reason:
            assert node is not None
            cone.blocked = node, str(reason)
            return cone
        if node is None or passage is None:  # layers that are fed come from no stack
            cone.stacks.clear()
            return cone
        if isinstance(passage, Passage):
            cone.nodes.add(node)
            todo += [(source, part) for source, part in passage.layers(node)]
        elif node.op_type == "Concat":
            cone.stacks.setdefault(node, set()).add(list(node.inputs).index(passage.value))
            if passage.layer.length > 1:
                todo.append((passage.value, passage.layer))
        else:
            cone.nodes.add(node)
            todo.append((passage.value, passage.layer))
    return cone


def _joined(cones: Sequence[_Cone], new: _Cone) -> list[_Cone]:
    """Join those that share operators or stacks: they can only be moved together."""
    apart = [cone for cone in cones if not cone.meets(new)]
    for cone in cones:
        if cone.meets(new):
            new.join(cone)
    return [*apart, new]


def _refusal(cone: _Cone) -> str:
    """Why moving the picks would save nothing, or nothing."""
    picked = {pick.picked.producer() for pick in cone.picks}
    for stack, places in cone.stacks.items():
        if cone.nodes and len(places) > 1:
            several = ", ".join(str(place) for place in sorted(places))
            return f"layers {several} of {named(stack)} are all read"
    if not cone.nodes:
        return ""  # a pick straight from the stack is its input, whoever else reads the stack
    for node in (*cone.stacks, *cone.nodes):
        for value in node.outputs:
            if value.is_graph_output() and node not in picked:
                return f"all layers are the output {value.name!r}"
            for reader in (use.node for use in value.uses()):
                if reader not in picked and reader not in cone.nodes and reader not in cone.stacks:
                    return f"{named(reader)} reads all layers"
    return ""


def _layered_values(stacks: Sequence[ir.Node]) -> set[ir.Value]:
    """All tensors that hold the layers of one of the stacks, along an axis of their own or merged with others."""
    seen: set[tuple[ir.Value, int | None]] = set()
    todo: list[tuple[ir.Value, int | None]] = [
        (stack.outputs[0], stack.attributes["axis"].as_int() % len(stack.outputs[0].shape or (0,)))
        for stack in stacks
    ]
    while todo:
        value, axis = todo.pop()
        if (value, axis) not in seen and value.shape is not None:
            seen.add((value, axis))
            for reader in {use.node for use in value.uses()}:
                todo += _handed_on(reader, value, axis)
    return {value for value, _ in seen}


def _handed_on(node: ir.Node, value: ir.Value, axis: int | None) -> list[tuple[ir.Value, int | None]]:
    """The outputs of `node` that hold the layers its input `value` holds on `axis`, each with its axis."""
    if axis is None:
        return [(node.outputs[0], None)] if node.op_type in _KEEPS_MERGED else []
    length = value.shape[axis] if value.shape is not None else None
    found: list[tuple[ir.Value, int | None]] = [
        (output, at)
        for output in node.outputs
        for at, dim in enumerate(output.shape or ())
        if isinstance(length, int) and dim == length and _is_made_of(node, Layer(at, 0, length), value, axis)
    ]
    return found or ([(node.outputs[0], None)] if node.op_type == "Reshape" else [])


def _is_made_of(node: ir.Node, layer: Layer, value: ir.Value, axis: int) -> bool:
    """Whether a layer of the output of `node` is made of that of its input `value` along `axis`."""
    try:
        passage = through(node, layer)
    except LeftAlone:
        return False
    if isinstance(passage, Passage):
        return any(source is value and part.axis == axis for source, part in passage.layers(node))
    return False
