"""An ONNX graph as who reads from whom, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import onnx

# Their results are numbers about a tensor, not its contents.
_ABOUT = frozenset({"Shape", "Size"})


class Flow:
    """Nodes by their position in the graph, which onnx requires to be an order of execution."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.constants = {tensor.name for tensor in graph.initializer}
        self.constants |= {
            output for node in graph.node if node.op_type == "Constant" for output in node.output
        }
        self.producer = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
        self.images = {value.name for value in graph.input if len(value.type.tensor_type.shape.dim) == 4}

    @cached_property
    def before(self) -> list[list[int]]:
        """Positions of the nodes that each node reads from."""
        return [[self.producer[name] for name in node.input if name in self.producer] for node in self.nodes]

    @cached_property
    def after(self) -> list[list[int]]:
        """Positions of the nodes that read from each node."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for at, sources in enumerate(self.before):
            for source in sources:
                found[source].append(at)
        return found

    @cached_property
    def from_image(self) -> list[bool]:
        """Whether each node's result depends on the pixels, and not only on how many they are."""
        depends: list[bool] = []
        for at, node in enumerate(self.nodes):
            fed = any(name in self.images for name in node.input) or any(depends[i] for i in self.before[at])
            depends.append(fed and node.op_type not in _ABOUT)
        return depends

    def upstream(self, starts: Iterable[int]) -> set[int]:
        """Return `starts` and everything they depend on."""
        return _reached(starts, self.before)

    def downstream(self, starts: Iterable[int]) -> set[int]:
        """Return `starts` and everything that depends on them."""
        return _reached(starts, self.after)

    def computed(self, at: int) -> list[str]:
        """Return the inputs of a node that are no constants."""
        return [name for name in self.nodes[at].input if name and name not in self.constants]


def _reached(starts: Iterable[int], edges: Sequence[Sequence[int]]) -> set[int]:
    found: set[int] = set()
    todo = list(starts)
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo.extend(edges[at])
    return found
