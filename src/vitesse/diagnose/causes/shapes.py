"""Sizes of the traced example that stayed in the graph."""

from __future__ import annotations

from vitesse.diagnose.case import Case
from vitesse.diagnose.graph import Graph
from vitesse.diagnose.rules import Cause, Confidence, Suspicion
from vitesse.sources.signature import graph_inputs

_REMEDY = "vitesse export MODEL --dynamic batch -o {model}"


def _baked_batch(case: Case) -> Suspicion | None:
    if case.symptom is None or case.symptom.kind != "batch":
        return None
    graph = case.graph
    for node in graph.of_type("Reshape"):
        if node.output[0] in graph.moving:
            shape = graph.constant(node.input[1])
            # 0 keeps the batch and −1 finds it; anything else fixes it.
            if shape is not None and shape.size > 1 and int(shape.flat[0]) > 0:
                text = f"Reshape `{node.output[0]}` writes {shape.tolist()}: the batch of the traced example"
                return Suspicion(Confidence.LIKELY, text, node.output[0])
    return Suspicion(Confidence.POSSIBLE, "the batch of the traced example is fixed somewhere in the graph")


def _frozen(case: Case) -> Suspicion | None:
    if case.reference is None:
        return None
    for ours, theirs in zip(_inputs(case.graph), _inputs(case.reference), strict=False):
        for axis, (now, was) in enumerate(zip(ours[1], theirs[1], strict=False)):
            if isinstance(now, int) and isinstance(was, str):
                word = "batch" if axis == 0 else f"axis {axis}"
                text = f"the {word} of the input `{ours[0]}` is fixed to {now}; the original leaves it open"
                return Suspicion(Confidence.POSSIBLE, text, ours[0])
    return None


def _inputs(graph: Graph) -> list[tuple[str, tuple[int | str, ...]]]:
    return [(entry.name, entry.shape) for entry in graph_inputs(graph.model)]


FAULTS = (
    Cause(
        "baked_batch",
        "the batch of the traced example is written into the graph",
        "two images in one call fail, or answer otherwise than one by one; a Reshape to a constant batch",
        _REMEDY,
        _baked_batch,
    ),
)
HAZARDS = (
    Cause(
        "frozen_shape",
        "a size the original leaves open is fixed",
        "an input's dimension is a number here and a name in the original",
        "vitesse export MODEL --dynamic batch,height,width -o {model}",
        _frozen,
        hazard=True,
    ),
)
