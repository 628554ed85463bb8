"""Which part of the network a node belongs to where no name tells: by attention and what lies round it.

What the first attention reads is the backbone (or patch embedding); what a cross-attention reads as keys is the
encoder's result; what follows the last attention and normalisation is the heads; what follows a top-k behind them is
post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitesse.profile.graph import Flow
from vitesse.profile.parts import Part

ATTENTION = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})
NORMALISATION = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
)
SELECTION = frozenset({"TopK", "NonMaxSuppression", "GatherElements", "GatherND", "ArgMax"})
# Between the scores of an attention and its Softmax.
_SCORES = frozenset({"Add", "Mul", "Div", "Where", "Cast", "Reshape", "Sub", "Clip"})
# A tensor is looked for behind these: they project, move or scale it.
_TRANSPARENT = frozenset(
    {
        *("MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Reshape", "Transpose", "Split", "Slice", "Gather"),
        *("Squeeze", "Unsqueeze", "Cast", "Identity", "QuantizeLinear", "DequantizeLinear", "Expand", "Tile"),
        *("Flatten", "Concat"),
    }
)


@dataclass(frozen=True)
class _Core:
    """The heart of an attention: the node, and the nodes whose results its queries and keys are made of."""

    at: int
    queries: frozenset[int]
    keys: frozenset[int]

    @property
    def crosses(self) -> bool:
        """Whether queries and keys come from different tensors."""
        return bool(self.keys) and not self.queries & self.keys


def parts_by_structure(flow: Flow) -> list[Part]:
    """Return the part of every node, in the order of the graph."""
    cores = [core for at in range(len(flow.nodes)) if (core := _core(flow, at)) is not None]
    crossing = [core for core in cores if core.crosses]
    memory = flow.upstream(at for core in crossing for at in core.keys)
    plain = [core for core in cores if not core.crosses and (not crossing or core.at in memory)]
    entry = flow.upstream(plain[0].queries | plain[0].keys) if plain else memory
    if plain:
        # The normalisation that an attention reads is already part of its block.
        entry -= {at for at in plain[0].queries if flow.nodes[at].op_type in NORMALISATION}
    last = [at for at, node in enumerate(flow.nodes) if node.op_type in NORMALISATION]
    inner = flow.upstream([*last, *(core.at for core in cores)] or _convolutions(flow))
    behind = _behind_selection(flow, inner)
    body = Part.DECODER if crossing else Part.BLOCKS if cores else Part.BACKBONE
    front = Part.BACKBONE if crossing or not cores else Part.EMBEDDING

    def part(at: int) -> Part:
        if at in entry:
            return front
        if at in memory:
            return Part.ENCODER
        if at in inner:
            return body
        return Part.POST if at in behind else Part.HEADS

    return [part(at) for at in range(len(flow.nodes))]


def _convolutions(flow: Flow) -> list[int]:
    return [at for at, node in enumerate(flow.nodes) if node.op_type.endswith("Conv")]


def _behind_selection(flow: Flow, inner: set[int]) -> set[int]:
    """A top-k inside the network picks queries; only one behind it is post-processing."""
    starts = [at for at, node in enumerate(flow.nodes) if node.op_type in SELECTION and at not in inner]
    return flow.downstream(starts)


def _core(flow: Flow, at: int) -> _Core | None:
    node = flow.nodes[at]
    if node.op_type in ATTENTION and len(node.input) >= 2:
        return _Core(at, _origins(flow, node.input[0]), _origins(flow, node.input[1]))
    if node.op_type == "GridSample":  # deformable attention: values are sampled where the queries say
        return _Core(at, _origins(flow, node.input[1]), _origins(flow, node.input[0]))
    if node.op_type == "Softmax":
        product = _product_behind(flow, at)
        if product is not None:
            left, right = flow.nodes[product].input[:2]
            return _Core(at, _origins(flow, left), _origins(flow, right))
    return None


def _product_behind(flow: Flow, softmax: int) -> int | None:
    """Find the product of two computed tensors that a Softmax normalises."""
    todo: Sequence[int] = flow.before[softmax]
    while todo:
        for at in todo:
            if flow.nodes[at].op_type in {"MatMul", "FusedMatMul", "Einsum"} and len(flow.computed(at)) == 2:
                return at
        todo = [i for at in todo if flow.nodes[at].op_type in _SCORES for i in flow.before[at]]
    return None


def _origins(flow: Flow, name: str) -> frozenset[int]:
    """Nodes that made the tensor, behind projections by constants and moves; a constant has none."""
    found, seen, todo = set(), set(), [flow.producer[name]] if name in flow.producer else []
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        node = flow.nodes[at]
        sources = [i for i in flow.before[at] if flow.from_image[i]]
        through = node.op_type in _TRANSPARENT and len(set(sources)) == 1
        if through:
            todo.extend(sources)
        elif flow.from_image[at]:
            found.add(at)
    return frozenset(found)
