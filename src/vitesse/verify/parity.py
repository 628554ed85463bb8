"""How far a model's outputs lie from the untouched model's, output by output, over many images.

Definitions, with r the reference, c the candidate, over all images:

    max_abs   largest |c − r|
    max_rel   max_abs / largest |r|: one scale per output, so that values near zero cannot blow it up and the
              order of the images does not matter
    cosine    smallest, over the images, of ⟨c, r⟩ / (‖c‖·‖r‖) of the flattened output

Integer outputs: max_rel is the share of values that differ; there is no cosine.

**Detections that come out of a top-k are a set**: two detections with nearly the same score may swap places, and
the last ones may be exchanged for others, without anything being wrong. Where the spec says `postprocessed` or
`detr_sigmoid`, outputs are therefore compared as detections, not place by place:

    scores    the sorted scores against the sorted scores, place by place
    labels    share of confident detections (score of at least 0.05, and in any case the ten best of each side)
              that have no counterpart of the same class with IoU ≥ 0.5 on the other side; every counterpart is
              used once. Both directions count, so losing and inventing detections both show. In `max_rel`.
    boxes     corners of the counterparts, in pixels
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitesse.backends.protocol import Array, Tensors
from vitesse.errors import SpecError
from vitesse.ledger import Parity
from vitesse.spec import Decode, ModelSpec
from vitesse.verify.health import Finding, HealthMeter
from vitesse.verify.matching import match_detections

SET_LIKE = frozenset({Decode.POSTPROCESSED, Decode.DETR_SIGMOID})


@dataclass(frozen=True)
class OutputParity:
    """Distance of one output. `max_rel` and `cosine` are None where they are not defined (see the module)."""

    output: str
    max_abs: float
    max_rel: float | None
    cosine: float | None
    worst_image: str
    reference_peak: float


@dataclass
class _Distance:
    max_abs: float = 0.0
    peak: float = 0.0
    cosine: float | None = None
    worst_image: str = ""
    unequal: int = 0
    compared: int = 0
    integers: bool = False

    def add_floats(self, reference: Array, candidate: Array, image: str) -> None:
        r, c = (np.asarray(array, np.float64).ravel() for array in (reference, candidate))
        finite = np.isfinite(r) & np.isfinite(c)
        difference = float(np.abs(c[finite] - r[finite]).max(initial=0.0))
        if difference > self.max_abs or not self.worst_image:
            self.worst_image = image
        self.max_abs = max(self.max_abs, difference)
        self.peak = max(self.peak, float(np.abs(r[finite]).max(initial=0.0)))
        # A value that is not finite cannot be compared: the worst cosine keeps it from looking fine.
        cosine = cosine_of(r, c) if finite.all() else -1.0
        self.cosine = cosine if self.cosine is None else min(self.cosine, cosine)

    def add_counts(self, unequal: int, compared: int, image: str, *, max_abs: float = 0.0) -> None:
        self.integers = True
        if unequal and not self.unequal:
            self.worst_image = image
        self.unequal += unequal
        self.compared += compared
        self.max_abs = max(self.max_abs, max_abs)

    def result(self, output: str) -> OutputParity:
        if self.integers:
            share = self.unequal / self.compared if self.compared else None
            return OutputParity(output, self.max_abs, share, None, self.worst_image, self.peak)
        relative = self.max_abs / self.peak if self.peak else (0.0 if not self.max_abs else None)
        return OutputParity(output, self.max_abs, relative, self.cosine, self.worst_image, self.peak)


@dataclass
class ParityMeter:
    """Takes in pairs of outputs, call by call, and keeps only the figures.

    spec: says which outputs are a set of detections; None compares every output place by place.
    """

    spec: ModelSpec | None = None
    images: int = 0
    _distances: dict[str, _Distance] = field(default_factory=dict)
    _misfits: dict[tuple[str, str], Finding] = field(default_factory=dict)
    _reference_health: HealthMeter = field(default_factory=HealthMeter)
    _candidate_health: HealthMeter = field(default_factory=HealthMeter)

    def add(self, reference: Tensors, candidate: Tensors, *, image: str = "") -> None:
        """Compare the outputs of one call on the same feeds; `image` names it in findings."""
        self.images += 1
        image = image or f"image {self.images}"
        self._reference_health.add(reference, image=image)
        self._candidate_health.add(candidate, image=image)
        fitting = [name for name in reference if self._fits(name, reference, candidate, image)]
        as_set = set(self._detection_outputs()) if self.spec else set()
        if as_set and as_set <= set(fitting):
            self._add_detections(reference, candidate, image)
            fitting = [name for name in fitting if name not in as_set]
        for name in fitting:
            self._add_plain(name, reference[name], candidate[name], image)

    def table(self) -> tuple[OutputParity, ...]:
        """Return one line per output, in the order of the reference's outputs."""
        return tuple(distance.result(name) for name, distance in self._distances.items())

    def parity(self) -> Parity | None:
        """Return the worst figures over all outputs; None while nothing could be compared."""
        lines = self.table()
        if not lines:
            return None
        worst = max(lines, key=_badness)
        relatives = [line.max_rel for line in lines if line.max_rel is not None]
        unmeasured = any(line.max_rel is None for line in lines)
        return Parity(
            max_abs=max(line.max_abs for line in lines),
            cosine=min((line.cosine for line in lines if line.cosine is not None), default=1.0),
            max_rel=None if unmeasured else max(relatives),
            worst_output=worst.output,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what makes a comparison void: values that are not finite, on either side, and other shapes.

        NaN in the same place of both models is reported too: two broken models that agree are still broken.
        """
        original = tuple(
            Finding(
                found.kind, found.output, f"the original model: {found.text}", found.images, found.first_image
            )
            for found in self._reference_health.findings()
            if found.kind in ("nan", "inf")
        )
        return (*self._misfits.values(), *self._candidate_health.findings(), *original)

    def _fits(self, name: str, reference: Tensors, candidate: Tensors, image: str) -> bool:
        if name not in candidate:
            if self.spec is not None and name not in self.spec.outputs.values():
                return False  # nothing reads it, and cleaning drops the predictions of inner layers
            text = f"the output `{name}` is missing; there are {', '.join(f'`{key}`' for key in candidate)}"
            self._misfits.setdefault((name, "missing"), Finding("missing", name, text, 1, image))
            return False
        came, wanted = candidate[name].shape, reference[name].shape
        if came != wanted:
            text = f"the output `{name}` has shape {came}, the original has {wanted} (first: {image})"
            self._misfits.setdefault((name, "shape"), Finding("shape", name, text, 1, image))
            return False
        return True

    def _detection_outputs(self) -> tuple[str, ...]:
        return tuple(self.spec.outputs.values()) if self.spec and self.spec.decode in SET_LIKE else ()

    def _distance(self, name: str) -> _Distance:
        return self._distances.setdefault(name, _Distance())

    def _add_plain(self, name: str, reference: Array, candidate: Array, image: str) -> None:
        if reference.dtype.kind == "f":
            self._distance(name).add_floats(reference, candidate, image)
            return
        unequal = int(np.count_nonzero(reference != candidate))
        gap = float(
            np.abs(np.asarray(candidate, np.float64) - np.asarray(reference, np.float64)).max(initial=0)
        )
        self._distance(name).add_counts(unequal, reference.size, image, max_abs=gap)

    def _add_detections(self, reference: Tensors, candidate: Tensors, image: str) -> None:
        assert self.spec is not None
        names = {"scores": "scores", "labels": "labels", **self.spec.outputs}
        try:
            matched = list(match_detections(reference, candidate, self.spec))
        except SpecError as error:  # such as a class beyond the last label
            text = f"the outputs cannot be read as detections: {error.what} (first: {image})"
            self._misfits.setdefault(
                (names["labels"], "unreadable"), Finding("unreadable", "", text, 1, image)
            )
            return
        for pairs in matched:
            self._distance(names["scores"]).add_floats(pairs.scores[0], pairs.scores[1], image)
            self._distance(names["labels"]).add_counts(pairs.unmatched, pairs.confident, image)
            self._distance(names["boxes"]).add_floats(pairs.boxes[0], pairs.boxes[1], image)


def cosine_of(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """Return the cosine of two vectors in -1..1: 1 where both are zero, 0 where one is."""
    peaks = float(np.abs(reference).max(initial=0.0)), float(np.abs(candidate).max(initial=0.0))
    if not all(peaks):
        return 1.0 if peaks == (0.0, 0.0) else 0.0
    # Scaling first keeps the squares of huge and of tiny values inside the range of a float.
    r, c = reference / peaks[0], candidate / peaks[1]
    return max(-1.0, min(1.0, float(np.dot(r, c) / (np.linalg.norm(r) * np.linalg.norm(c)))))


def _badness(line: OutputParity) -> float:
    return math.inf if line.max_rel is None else line.max_rel
