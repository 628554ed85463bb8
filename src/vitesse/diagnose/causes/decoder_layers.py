"""Decoder layers stacked for training: the wrong one read, or read in a way that runtimes get wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from vitesse.diagnose.case import SAME, Case, error_of
from vitesse.diagnose.graph import Graph, with_constant
from vitesse.diagnose.rules import Cause, Confidence, Suspicion, tried

_STACKED = "Concat"
# Heads lie between the stack and the pick in DETR's own code; they are no longer than this.
_FAR_UP = 60


def _picks(graph: Graph) -> Iterator[tuple[onnx.NodeProto, int, int]]:
    """Yield (Gather with one constant index, the index as written, layers in the stack) of stacks of layers."""
    for node in graph.of_type("Gather"):
        index = graph.scalar(node.input[1])
        layers = _layers(graph, node)
        if index is not None and layers:
            yield node, int(index), layers


def _layers(graph: Graph, pick: onnx.NodeProto) -> int:
    """How many layers the stack has that a Gather reads; 0 when it reads no stack."""
    axis = graph.settings(pick).get("axis", 0)
    for far, node in enumerate(graph.upstream(pick.input[0])):
        if far > _FAR_UP:
            return 0
        if node.op_type == _STACKED and graph.settings(node).get("axis") == axis and len(node.input) > 1:
            makers = [graph.maker(name) for name in node.input]
            if all(made is not None and made.op_type in ("Unsqueeze", "Reshape") for made in makers):
                return len(node.input)
    return 0


def _wrong_layer(case: Case) -> Suspicion | None:
    for node, index, layers in _picks(case.graph):
        if index in (-1, layers - 1) or case.symptom is None:
            continue
        last = np.full_like(case.graph.constant(node.input[1]), layers - 1)
        found = f"`{node.output[0]}` is layer {index % layers + 1} of {layers} decoder layers; the answer is the last"
        return tried(case.cures(with_constant(case.candidate.runnable, node, 1, last)), found)
    return None


def _auxiliary_output(case: Case) -> Suspicion | None:
    """Another output of the candidate is what the original gives under this name."""
    if case.original is None or not case.answers:
        return None
    expected, found = case.answers[case.worst]
    for name, value in expected.items():
        if name not in found or error_of({name: value}, found) <= SAME:
            continue
        for other, given in found.items():
            unread = other not in expected
            if unread and given.shape == value.shape and error_of({name: value}, {name: given}) <= SAME:
                text = f"what the original calls `{name}` is the candidate's output `{other}`"
                return Suspicion(Confidence.PROVEN, text, name)
    return None


def _negative_gather(case: Case) -> Suspicion | None:
    for node, index, layers in _picks(case.graph):
        if index < 0:
            text = (
                f"`{node.output[0]}` reads decoder layer {index} of a stack of {layers} by a negative index: TensorRT "
                "engines built from it were seen to answer all zeros"
            )
            return Suspicion(Confidence.POSSIBLE, text, node.output[0])
    return None


def _auxiliary_heads(case: Case) -> Suspicion | None:
    spec = case.candidate.spec
    if spec is None:
        return None
    ranks = {entry.name: entry for entry in case.candidate.model.graph.output}
    read = [ranks[name].type.tensor_type.shape for name in spec.outputs.values() if name in ranks]
    lasts = {_last(shape) for shape in read}
    extra = [
        name
        for name, entry in ranks.items()
        if name not in spec.outputs.values() and _last(entry.type.tensor_type.shape) in lasts
    ]
    if not extra:
        return None
    text = f"{len(extra)} outputs that nothing reads look like those of inner decoder layers: `{extra[0]}`"
    return Suspicion(Confidence.POSSIBLE, text, extra[0])


def _last(shape: onnx.TensorShapeProto) -> int:
    return int(shape.dim[-1].dim_value) if shape.dim else -1


FAULTS = (
    Cause(
        "wrong_layer",
        "another decoder layer than the last is read",
        "a Gather picks another index than the last of the stacked layers; tried with the last",
        "vitesse export MODEL -o {model}   (without --keep-aux: exports the last layer only)",
        _wrong_layer,
    ),
    Cause(
        "auxiliary_output",
        "the output of an inner layer is read",
        "another output of the candidate equals what the original gives under this name",
        "vitesse optimize {against} --data {data}   (or name the right output under [outputs] in --spec spec.toml)",
        _auxiliary_output,
    ),
)
HAZARDS = (
    Cause(
        "negative_gather",
        "a negative index into stacked decoder layers",
        "a Gather with a negative constant index reads a stack of layers",
        "vitesse optimize {model} --data {data}   (cleaning reads the last layer without a Gather)",
        _negative_gather,
        hazard=True,
    ),
    Cause(
        "auxiliary_heads",
        "heads of inner decoder layers are still computed",
        "outputs shaped like those the spec reads, which it does not read",
        "vitesse optimize {model} --data {data}   (cleaning drops them; export without --keep-aux)",
        _auxiliary_heads,
        hazard=True,
    ),
)
