"""Everything the rules may look at: both graphs, what flowed through them, and the means to try a remedy out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from vitesse.backends.protocol import Array, Tensors
from vitesse.diagnose.graph import Graph
from vitesse.diagnose.subject import Pictures, Side, same_names
from vitesse.diagnose.symptom import Number, Symptom
from vitesse.diagnose.tracing import Seen
from vitesse.errors import VitesseError
from vitesse.verify.diverge import difference_of

# A change is the remedy when it leaves at most this part of the error.
_CURED = 0.2
# What counts as equal, where an output is held against something it may be mistaken for.
SAME = 0.01


@dataclass(frozen=True)
class Case:
    """One candidate, with the original where there is one.

    calls: for each image, what the original and the candidate are fed.
    answers: what each answered, under the original's names; the original's is empty where there is none.
    """

    candidate: Side
    original: Side | None
    number: Number
    pictures: Pictures
    calls: Sequence[tuple[Tensors, Tensors]]
    answers: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
    output_names: Mapping[str, str]
    seen: Mapping[str, Seen]
    symptom: Symptom | None

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what was computed under this name, computing it the first time: several rules ask."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {}

    @cached_property
    def graph(self) -> Graph:
        """The candidate's graph, as its file has it."""
        return Graph(self.candidate.model)

    @cached_property
    def reference(self) -> Graph | None:
        """The original's graph."""
        return None if self.original is None else Graph(self.original.model)

    @cached_property
    def worst(self) -> int:
        """The image on which the candidate is furthest off."""
        errors = [error_of(*pair) for pair in self.answers]
        return int(np.argmax(errors)) if errors else 0

    @cached_property
    def error(self) -> float:
        """How far the candidate's answer is from the original's on that image; inf where it is not finite."""
        return error_of(*self.answers[self.worst]) if self.answers else np.inf

    def error_after(self, model: onnx.ModelProto | None = None, given: Tensors | None = None) -> float:
        """Return the error with another graph, or fed otherwise; inf where that does not run."""
        expected = self.answers[self.worst][0]
        try:
            outputs = self.candidate.outputs_of(given or self.calls[self.worst][1], model)
        except VitesseError:
            return float(np.inf)
        return error_of(expected, same_names(outputs, self.output_names))

    def cures(self, model: onnx.ModelProto | None = None, given: Tensors | None = None) -> bool:
        """Whether a changed graph, or another way of feeding it, gives (nearly) what the original gives."""
        if self.original is None or not self.answers:
            return False
        after = self.error_after(model, given)
        return after <= SAME or (np.isfinite(self.error) and after <= _CURED * self.error and after < 0.1)

    @cached_property
    def node(self) -> onnx.NodeProto | None:
        """The node that makes the first wrong tensor."""
        return None if self.symptom is None else self.graph.maker(self.symptom.tensor)

    def counterpart(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the original's node that does the same: it makes the same tensor, or is the n-th of its kind."""
        if self.reference is None:
            return None
        named = next((made for name in node.output if (made := self.reference.maker(name)) is not None), None)
        if named is not None:
            return named
        here = [list(one.output) for one in self.graph.of_type(node.op_type)]
        there = self.reference.of_type(node.op_type)
        return there[here.index(list(node.output))] if len(here) == len(there) else None

    def region(self, graph: Graph) -> list[onnx.NodeProto]:
        """Return the nodes between the last right tensors and the first wrong one, nearest first.

        The whole graph where the two have no tensor in common before it.
        """
        tensor = "" if self.symptom is None else self.symptom.tensor
        shared = frozenset(
            name for name, seen in self.seen.items() if seen.original is not None and name != tensor
        )
        return (
            list(graph.upstream(tensor, until=shared))
            if graph.maker(tensor) is not None
            else list(graph.nodes)
        )


def error_of(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Return the largest rms difference of the outputs both have; of integers the share that differs."""
    errors = [0.0]
    for name, reference in expected.items():
        value = found.get(name)
        if value is None:
            continue
        if reference.dtype.kind == "f" and value.dtype.kind == "f":
            errors.append(difference_of(reference, value).rms)
        else:
            unequal = reference.shape != value.shape or bool((reference != value).any())
            errors.append(
                float(np.mean(reference != value)) if reference.shape == value.shape else float(unequal)
            )
    return float(np.inf) if any(np.isnan(errors)) else max(errors)
