"""The first tensor that is wrong, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from vitesse.diagnose.graph import Graph
from vitesse.diagnose.tracing import FP16_LARGEST, Seen, Span
from vitesse.verify.diverge import Tolerance


class Number(StrEnum):
    """In what the candidate computes: decides how far it may be from the original."""

    EXACT = "float32"
    HALF = "half precision"
    QUANTISED = "quantised"


# From which rms difference on a tensor counts as wrong: rounding alone gives a few thousandths in FP16, and some
# hundredths behind many INT8 layers.
FAR = {Number.HALF: 0.05, Number.QUANTISED: 0.3}

# In float32, an rms difference above the first, and so many times that of what it is made from, has its origin there.
_BEGUN, _JUMP = 1e-5, 30.0


@dataclass(frozen=True)
class Symptom:
    """Where the graph goes wrong.

    kind: overflow, nan, zeros, constant, shape, differs; of whole models: refused, batch, random.
    tensor, operator, node, module: what is wrong, and what makes it; empty for whole models.
    original, candidate: ranges (smallest, largest), None where unknown; limit: FP16's largest number where it matters.
    """

    kind: str
    text: str
    tensor: str = ""
    operator: str = ""
    node: str = ""
    module: str = ""
    original: Span | None = None
    candidate: Span | None = None
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ranges that are not finite as text, for JSON has no infinity."""
        plain = asdict(self)
        for name in ("original", "candidate"):
            if plain[name] is not None:
                plain[name] = [value if np.isfinite(value) else str(value) for value in plain[name]]
        return plain


def first_wrong(graph: Graph, seen: Mapping[str, Seen], number: Number) -> Symptom | None:
    """Return the first tensor, in the order of computing, that overflows, is NaN, stands still or is too far off.

    Where none is beyond the limits, although the outputs are wrong, the one that grew the difference most.
    """
    for node in graph.nodes:
        for name in node.output:
            if name in seen and name in graph.moving:
                kind = _kind(seen[name], node, graph, number)
                if kind == "differs" and number is Number.EXACT:
                    return symptom_of(graph, _origin(graph, seen, name), kind, number)
                if kind:
                    return symptom_of(graph, seen[name], kind, number)
    jump = _largest_jump(graph, seen)
    return None if jump is None else symptom_of(graph, jump, "differs", number)


def symptom_of(graph: Graph, seen: Seen, kind: str, number: Number) -> Symptom:
    """Describe what is wrong with one tensor."""
    node = graph.maker(seen.tensor)
    operator, name = ("", "") if node is None else (node.op_type, node.name)
    module = graph.module(seen.tensor)
    limit = FP16_LARGEST if number is Number.HALF and kind in ("overflow", "nan") else None
    made = f"made by {operator}" + (f" node `{name}`" if name else "") + (f" in {module}" if module else "")
    ranges = f"; it spans {_span(seen.span)}"
    if seen.original is not None:
        ranges += f", in the original {_span(seen.original)}"
    if limit is not None:
        ranges += f"; FP16 ends at {limit:g}"
    text = f"`{seen.tensor}` ({made}) {_words(kind, seen)}{ranges}"
    return Symptom(kind, text, seen.tensor, operator, name, module, seen.original, seen.span, limit)


def _kind(seen: Seen, node: Any, graph: Graph, number: Number) -> str:
    if seen.original is None and (seen.nan or seen.infinite):
        masks = [graph.constant(name) for name in node.input]
        if (
            any(mask is not None and mask.dtype.kind == "f" and np.isinf(mask).any() for mask in masks)
            and not seen.nan
        ):
            return ""  # a mask of -inf, on purpose
    if seen.nan:
        return "nan"
    if seen.infinite:
        return "overflow"
    met = seen.difference
    if met is not None and met.problem:
        return "shape"
    if seen.still and not (met is not None and met.within(Tolerance())):
        return "zeros" if seen.zeros else "constant"
    if met is None:
        return ""
    far = not met.within(Tolerance()) if number is Number.EXACT else met.rms > FAR[number]
    return "differs" if far else ""


def _origin(graph: Graph, seen: Mapping[str, Seen], tensor: str) -> Seen:
    """Return where a small difference began that has become too large at `tensor`: float32 grows in no such jumps."""
    for node in reversed(list(graph.upstream(tensor))):
        before = max((_off(seen.get(name)) for name in node.input), default=0.0)
        for name in node.output:
            if _off(seen.get(name)) > max(_BEGUN, _JUMP * before):
                return seen[name]
    return seen[tensor]


def _largest_jump(graph: Graph, seen: Mapping[str, Seen]) -> Seen | None:
    """Return the tensor whose difference exceeds most what its inputs had already."""
    best, most = None, 0.0
    for node in graph.nodes:
        before = max((_off(seen.get(name)) for name in node.input), default=0.0)
        for name in node.output:
            gained = _off(seen.get(name)) - before
            if gained > most and name in seen:
                best, most = seen[name], gained
    return best


def _off(seen: Seen | None) -> float:
    return 0.0 if seen is None or seen.difference is None else min(seen.difference.rms, 1e30)


def _words(kind: str, seen: Seen) -> str:
    met = seen.difference
    if kind == "overflow":
        return f"overflows: {seen.infinite} values are infinite"
    if kind == "nan":
        return f"holds {seen.nan} NaN"
    if kind == "zeros":
        return "is all zeros"
    if kind == "constant":
        return "is the same for every image"
    if met is not None and met.problem:
        return met.problem
    assert met is not None
    relative = f"{100 * met.max_rel:.3g} % of the largest value"
    return f"differs by up to {met.max_abs:.3g} ({relative}), cosine {met.cosine:.6f}"


def _span(span: Span) -> str:
    return f"{span[0]:.4g} to {span[1]:.4g}"
