"""The decoder of a DETR in its graph: which nodes each layer has, what it hands on, and what the heads read.

    … ─▶ layers.0 ─s0─▶ layers.1 ─s1─▶ … ─▶ layers.5 ─s5─▶ norm ─▶ heads ─▶ logits, boxes

Found by the modules that exporters note on nodes, then proven by the graph itself: each layer hands on one tensor and
the next one adds to it, all of one shape and made by the same operator, and nothing behind the last layer reads
anything else that the layers made. Only then are the heads, put behind another layer, the model's own auxiliary heads.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vitesse.compress.lever import NotApplicable
from vitesse.profile.modules import modules_of
from vitesse.profile.parts import Part
from vitesse.scopes import Path

_INDEXED = re.compile(r"(.+)\.(\d+)")
_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "Softmax"})
Nodes = frozenset[ir.Node]


@dataclass(frozen=True)
class _Layer:
    """The nodes of a layer, and those of them that decode: its attention and all behind it.

    The others prepare queries and keys, or work on the image's features and may serve later layers as well; they stay
    where anything reads them.
    """

    nodes: Nodes
    decoding: Nodes


@dataclass(frozen=True)
class Decoder:
    """A chain of decoder layers with shared heads behind it.

    name: module path of the list of layers, as `transformer.decoder.layers`.
    states: what each layer hands on, first layer first; all of one shape.
    heads: everything behind the last layer.
    """

    name: str
    states: tuple[ir.Value, ...]
    heads: Nodes


def find_decoder(model: ir.Model, outputs: Collection[str]) -> Decoder:
    """Return the decoder whose last layer alone decides `outputs`; shapes must have been inferred.

    Raises:
        NotApplicable: there is none, or its heads cannot be put behind another layer; the text says why.
    """
    paths = _decoder_paths(model)
    name, layers = _layers(model, paths)
    states = tuple(_handed_on(layer, index) for index, layer in enumerate(layers, start=1))
    _require_chain(layers, states)
    heads = _behind(states[-1], layers[-1].nodes)
    _require_alone(heads, states, outputs)
    _require_shared(heads, paths, len(layers))
    return Decoder(name, states, heads)


def _decoder_paths(model: ir.Model) -> Mapping[ir.Node, tuple[Part, Path]]:
    """Part and module of every node; those without a note have what their neighbours have."""
    places = modules_of(ir.to_proto(model)).places
    return {node: (place.part, place.path) for node, place in zip(model.graph, places, strict=True)}


def _layers(model: ir.Model, paths: Mapping[ir.Node, tuple[Part, Path]]) -> tuple[str, tuple[_Layer, ...]]:
    """The one list of modules inside the decoder of which each has attention, and the nodes of each."""
    lists: dict[tuple[str, ...], dict[int, set[ir.Node]]] = defaultdict(lambda: defaultdict(set))
    for node, (part, path) in paths.items():
        if part is Part.DECODER:
            for prefix, index in _indices(path)[:1]:
                lists[prefix][index].add(node)
    found = {
        prefix: layers
        for prefix, layers in lists.items()
        if all(any(node.op_type in _ATTENTION for node in nodes) for nodes in layers.values())
    }
    if not found:
        raise NotApplicable(
            "no decoder layers are to be seen in the graph",
            expected="nodes that carry the names of decoder layers, such as transformer.decoder.layers.3",
            cause="a model without a decoder, or a graph whose names were removed",
            fix="optimize the checkpoint itself, or export with names",
        )
    if len(found) > 1:
        names = ", ".join(".".join(prefix) for prefix in found)
        raise NotApplicable(f"the graph has more than one decoder: {names}", expected="one")
    ((prefix, layers),) = found.items()
    if sorted(layers) != list(range(len(layers))):
        kept = ", ".join(map(str, sorted(layers)))
        raise NotApplicable(f"of the decoder the graph has layers {kept}", expected="all, from 0 on")
    if len(layers) < 2:
        raise NotApplicable("the decoder has a single layer", expected="two or more, to drop the last ones")
    return ".".join(prefix), tuple(_layer(frozenset(layers[index])) for index in range(len(layers)))


def _layer(nodes: Nodes) -> _Layer:
    todo = [node for node in nodes if node.op_type in _ATTENTION]
    decoding: set[ir.Node] = set()
    while todo:
        node = todo.pop()
        if node not in decoding:
            decoding.add(node)
            todo += [use.node for value in node.outputs for use in value.uses() if use.node in nodes]
    return _Layer(nodes, frozenset(decoding))


def _indices(path: Path) -> list[tuple[tuple[str, ...], int]]:
    """Every list a module lies in, from the outside in: (path of the list, index)."""
    found = []
    for depth, level in enumerate(path):
        match = _INDEXED.fullmatch(level)
        if match:
            found.append(((*path[:depth], match[1]), int(match[2])))
    return found


def _handed_on(layer: _Layer, number: int) -> ir.Value:
    """The one tensor that a layer decodes and others read."""
    values = [
        value
        for node in layer.decoding
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in layer.nodes for use in value.uses())
    ]
    if len(values) != 1:
        raise NotApplicable(
            f"decoder layer {number} hands on {len(values)} tensors{_names(values)}",
            expected="one, which the next layer and the heads read",
        )
    return values[0]


def _require_chain(layers: Sequence[_Layer], states: Sequence[ir.Value]) -> None:
    """Each layer reads of the others only what the one before hands on, and adds to it."""
    decoding = frozenset[ir.Node]().union(*(layer.decoding for layer in layers))
    for number, (layer, before) in enumerate(zip(layers[1:], states, strict=False), start=2):
        read = {value for value in _read_by(layer.nodes) if value.producer() in decoding - layer.nodes}
        if read != {before}:
            raise NotApplicable(
                f"decoder layer {number} reads {len(read)} tensors of other layers{_names(read)}",
                expected=f"`{before.name}` alone, which layer {number - 1} hands on",
            )
        if not any(use.node.op_type == "Add" and use.node in layer.decoding for use in before.uses()):
            raise NotApplicable(
                f"decoder layer {number} does not add to what layer {number - 1} hands on",
                expected="a residual connection, as every DETR has",
            )
    kinds = {(_operator(value), _lengths(value)) for value in states}
    if len(kinds) > 1:
        told = ", ".join(sorted(f"{operator} {lengths}" for operator, lengths in kinds))
        raise NotApplicable(
            f"decoder layers hand on tensors of unlike kinds: {told}", expected="one operator and one shape"
        )


def _names(values: Iterable[ir.Value]) -> str:
    names = ", ".join(sorted(f"`{value.name}`" for value in values))
    return f": {names}" if names else ""


def _lengths(value: ir.Value) -> tuple[int | None, ...]:
    """The lengths of all axes, None for an open one."""
    return tuple(length if isinstance(length, int) else None for length in value.shape or ())


def _operator(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _read_by(nodes: Iterable[ir.Node]) -> Iterable[ir.Value]:
    return (value for node in nodes for value in node.inputs if value is not None)


def _behind(value: ir.Value, within: Nodes = frozenset()) -> Nodes:
    """All nodes outside `within` that what reads `value` leads to."""
    seen: set[ir.Node] = set()
    todo = [use.node for use in value.uses() if use.node not in within]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [use.node for output in node.outputs for use in output.uses()]
    return frozenset(seen)


def _require_alone(heads: Nodes, states: Sequence[ir.Value], outputs: Collection[str]) -> None:
    """The outputs come from the last layer, and from nothing else that a layer has a part in."""
    made = {value.name for node in heads for value in node.outputs}
    missing = [name for name in outputs if name not in made]
    if missing:
        raise NotApplicable(f"the output `{missing[0]}` does not come from the last decoder layer")
    decoded = frozenset[ir.Node]().union(*(_behind(value) for value in states[:-1]))
    for value in _read_by(heads):
        producer = value.producer()
        if value is not states[-1] and producer in decoded and producer not in heads:
            raise NotApplicable(
                f"the predictions are built on `{value.name}`, which earlier decoder layers made",
                expected="heads that read the last layer alone",
                cause="boxes refined from layer to layer, as in DAB-DETR, Deformable DETR, RT-DETR, D-FINE and DEIM; "
                "the graph does not hold the heads of inner layers",
            )


def _require_shared(heads: Nodes, paths: Mapping[ir.Node, tuple[Part, Path]], layers: int) -> None:
    """Heads that each layer has one of carry the last layer's number, and no other of their list is in the graph."""
    lists: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for node in heads:
        for prefix, index in _indices(paths[node][1]):
            lists[prefix].add(index)
    for prefix, indices in lists.items():
        if indices == {layers - 1}:
            raise NotApplicable(
                f"every decoder layer has a head of its own, and of {'.'.join(prefix)} the graph holds the last only",
                expected="heads that all layers share, as in DETR",
                cause="exporting drops the heads that only training reads",
            )
