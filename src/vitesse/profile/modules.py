"""Which module and which part of the network every node belongs to, and how that was found.

By the notes that exporters leave on nodes, by scopes in node names, else by the neighbours; in a graph whose nodes
mostly have no known name, by its structure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import onnx

from vitesse.profile.families import family
from vitesse.profile.graph import Flow
from vitesse.profile.parts import FLOW, Part, has_decoder, part_by_name
from vitesse.profile.structure import SELECTION, parts_by_structure
from vitesse.scopes import Path, path_in_name, path_of

# These carry the weights; a graph is named when most of them are.
WORK = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "MultiHeadAttention", "Einsum"})
# Families of operators that runtimes fuse what follows into, and how many nodes one kernel holds at most.
_LAYERS = frozenset({"convolution", "linear layer"})
_MOST_FUSED = 6
# They belong to what they feed, as they are there for its sake.
_SERVANTS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Found(StrEnum):
    """How the part of a node was found."""

    NAME = "by its name"
    NEIGHBOURS = "by its neighbours"
    STRUCTURE = "by the structure of the graph"


@dataclass(frozen=True)
class Place:
    """Where a node belongs: its part, its module (`()` = unknown or the network itself), and how it was found."""

    part: Part
    path: Path
    found: Found


class Modules:
    """The place of every node of a graph, in its order (`places`), by output tensor or node name (`place_of`)."""

    def __init__(self, flow: Flow, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._flow = flow
        self._by_name = {node.name: at for at, node in enumerate(flow.nodes) if node.name}

    def place_of(self, name: str, operator: str = "") -> Place | None:
        """Return the place of the node that makes the tensor `name`, or is called `name`; None when there is none.

        A runtime's kernel may be a layer with what follows it, and have only the last tensor's name: of a kernel
        whose `operator` is a layer, the place is that of the layer.
        """
        at = self._flow.producer.get(name, self._by_name.get(name))
        return None if at is None else self.places[self._layer(at, family(operator))]

    def _layer(self, at: int, kind: str) -> int:
        """Return the nearest node of a kind before the node, or itself."""
        level = [at]
        for _ in range(_MOST_FUSED if kind in _LAYERS else 0):
            for one in level:
                if family(self._flow.nodes[one].op_type) == kind:
                    return one
            level = [before for one in level for before in self._flow.before[one]]
        return at

    def found(self) -> dict[Found, int]:
        """Return how many nodes were placed which way."""
        counts = Counter(place.found for place in self.places)
        return {way: counts[way] for way in Found}


def modules_of(model: onnx.ModelProto) -> Modules:
    """Place every node of the main graph; subgraphs belong to the node that holds them."""
    flow = Flow(model.graph)
    paths = [_path(node) for node in flow.nodes]
    decoder = has_decoder(path for path in paths if path)
    named = [None if path is None else part_by_name(path, decoder=decoder) for path in paths]
    work = [named[at] for at, node in enumerate(flow.nodes) if node.op_type in WORK]
    if sum(part is not None for part in work) * 2 <= len(work):
        parts = parts_by_structure(flow)
        places = [
            Place(known or part, path or (), Found.STRUCTURE if known is None else Found.NAME)
            for known, part, path in zip(named, parts, paths, strict=True)
        ]
    else:
        places = _Spreading(flow, paths, named).run()
    return Modules(flow, places)


def _path(node: onnx.NodeProto) -> Path | None:
    """Read the node's notes and name; a node that a tool renamed may still have its old output."""
    path = path_of(node.name, {entry.key: entry.value for entry in node.metadata_props})
    return path_in_name(node.output[0]) if path is None and node.output else path


class _Spreading:
    """Places nodes without a known name beside their neighbours: what they read from, else what they feed."""

    def __init__(self, flow: Flow, paths: Sequence[Path | None], named: Sequence[Part | None]) -> None:
        self.flow = flow
        self.own = paths
        self.places: list[Place | None] = [
            None if part is None else Place(part, path or (), Found.NAME)
            for part, path in zip(named, paths, strict=True)
        ]

    def run(self) -> list[Place]:
        backwards = range(len(self.flow.nodes) - 1, -1, -1)
        self._pass(backwards, self._fed, only=_SERVANTS)
        self._pass(range(len(self.flow.nodes)), self._read)
        self._pass(backwards, self._fed)
        nowhere = Place(Part.OTHER, (), Found.NEIGHBOURS)
        return [nowhere if place is None else place for place in self.places]

    def _pass(
        self,
        order: Iterable[int],
        neighbour: Callable[[int], Place | None],
        only: frozenset[str] = frozenset(),
    ) -> None:
        for at in order:
            if self.places[at] is None and (not only or self.flow.nodes[at].op_type in only):
                place = neighbour(at)
                if place is not None:
                    path = self.own[at] or place.path
                    self.places[at] = replace(place, path=path, found=Found.NEIGHBOURS)

    def _read(self, at: int) -> Place | None:
        """The last part among what it reads; before every part, what works on the pixels is pre-processing."""
        flow = self.flow
        sources = [place for i in flow.before[at] if (place := self.places[i]) is not None]
        if not sources:
            first = flow.from_image[at] and flow.nodes[at].op_type not in WORK
            return Place(Part.PRE, (), Found.NEIGHBOURS) if first else None
        place = max(sources, key=lambda one: FLOW.index(one.part))
        if place.part is Part.HEADS and flow.nodes[at].op_type in SELECTION:
            return replace(place, part=Part.POST, path=())
        return place

    def _fed(self, at: int) -> Place | None:
        """The first part among what reads it."""
        readers = [place for i in self.flow.after[at] if (place := self.places[i]) is not None]
        return min(readers, key=lambda one: FLOW.index(one.part), default=None)
