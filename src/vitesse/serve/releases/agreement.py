"""How far an answer agrees with the reference's answer to the same request, as one number in 0..1.

    detections   greedy: every confident detection (score ≥ 0.5) of either side takes the free one of the same class
                 on the other side that overlaps it most, at IoU ≥ 0.5; agreement = Σ IoU · (1 − |score difference|)
                 over both sides' pairs / confident detections of both sides
    classes      1 − |score difference| where the first class is the same, else 0

A confident detection may pair with one below 0.5, so that a score of 0.51 against 0.49 costs 0.02 and not all. Where
neither side is confident of anything they agree. An answer without scores (NaN) agrees with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitesse.data.results import Classification, Detections, Result
from vitesse.verify.matching import counterparts, iou

# As in `verify.agreement`, which needs pycocotools: a server is installed without it.
CONFIDENT = 0.5


def agreement(found: Sequence[Result], expected: Sequence[Result]) -> float:
    """Return the mean agreement over the images of one request, in 0..1.

    Raises:
        ValueError: not as many results as expected, none at all, or results of unlike tasks.
    """
    if len(found) != len(expected) or not found:
        raise ValueError(f"{len(found)} results, expected {len(expected)} and at least one")
    return float(np.mean([_one(*pair) for pair in zip(found, expected, strict=True)]))


def _one(found: Result, expected: Result) -> float:
    if isinstance(found, Detections) and isinstance(expected, Detections):
        return _detections(found, expected)
    if isinstance(found, Classification) and isinstance(expected, Classification):
        return _classes(found, expected)
    raise ValueError(f"{type(found).__name__} cannot agree with {type(expected).__name__}")


def _classes(found: Classification, expected: Classification) -> float:
    if not len(found.labels) or not len(expected.labels) or found.labels[0] != expected.labels[0]:
        return 0.0
    return 1.0 - abs(float(found.scores[0]) - float(expected.scores[0]))


def _detections(found: Detections, expected: Detections) -> float:
    confident = [int(np.count_nonzero(side.scores >= CONFIDENT)) for side in (found, expected)]
    if not any(confident):
        return 1.0
    overlap = iou(found.boxes_xyxy, expected.boxes_xyxy)
    overlap[found.labels[:, None] != expected.labels[None, :]] = 0.0
    apart = np.abs(found.scores[:, None] - expected.scores[None, :])
    credit = _credit(overlap, apart, confident[0]) + _credit(overlap.T, apart.T, confident[1])
    return credit / sum(confident)


def _credit(overlap: NDArray[np.float32], apart: NDArray[np.float32], rows: int) -> float:
    here, there = counterparts(overlap, rows)
    return float((overlap[here, there] * (1.0 - apart[here, there])).sum())
