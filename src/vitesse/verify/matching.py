"""Which detection of one model is which of another, for comparing sets instead of places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitesse.backends.protocol import Tensors
from vitesse.data.postprocess import decode
from vitesse.data.results import Detections
from vitesse.spec import ModelSpec

CONFIDENT = 0.05
ALWAYS = 10
MATCH_IOU = 0.5

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two models' detections in one image, brought together.

    scores: sorted, highest first, cut to the shorter side.
    boxes: (n, 4) xyxy in pixels of the counterparts, row by row.
    unmatched: confident detections of either side without a counterpart; confident: how many were looked at.
    """

    scores: tuple[Floats, Floats]
    boxes: tuple[Floats, Floats]
    unmatched: int
    confident: int


def match_detections(reference: Tensors, candidate: Tensors, spec: ModelSpec) -> Iterator[Pairs]:
    """Yield the pairs of every image of a batch, read as the spec says."""
    batch = len(next(iter(reference.values())))
    sizes = [spec.preprocessing.size] * batch
    for one, other in zip(decode(reference, spec, sizes), decode(candidate, spec, sizes), strict=True):
        assert isinstance(one, Detections) and isinstance(other, Detections)
        yield _pairs(one, other)


def _pairs(reference: Detections, candidate: Detections) -> Pairs:
    overlap = iou(reference.boxes_xyxy, candidate.boxes_xyxy)
    overlap[reference.labels[:, None] != candidate.labels[None, :]] = 0.0
    here, there = counterparts(overlap, _confident(reference))
    lost = _confident(reference) - len(here)
    back, _ = counterparts(overlap.T, _confident(candidate))
    invented = _confident(candidate) - len(back)
    shared = min(len(reference), len(candidate))
    return Pairs(
        scores=(reference.scores[:shared], candidate.scores[:shared]),
        boxes=(reference.boxes_xyxy[here], candidate.boxes_xyxy[there]),
        unmatched=lost + invented,
        confident=_confident(reference) + _confident(candidate),
    )


def _confident(found: Detections) -> int:
    return max(int(np.count_nonzero(found.scores >= CONFIDENT)), min(ALWAYS, len(found)))


def counterparts(overlap: Floats, rows: int) -> tuple[list[int], list[int]]:
    """Give each of the first `rows` rows, best score first, the free column that overlaps most, at IoU ≥ 0.5."""
    free = overlap.copy()
    here, there = [], []
    for row in range(rows if overlap.shape[1] else 0):
        column = int(np.argmax(free[row]))
        if free[row, column] >= MATCH_IOU:
            here.append(row)
            there.append(column)
            free[:, column] = -1.0
    return here, there


def iou(a_xyxy: Floats, b_xyxy: Floats) -> Floats:
    """Return (n, m) intersection over union of (n, 4) and (m, 4) boxes; 0 where a box has no area."""
    left_top = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    right_bottom = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    sides = np.clip(right_bottom - left_top, 0, None)
    shared = sides[..., 0] * sides[..., 1]
    area_a, area_b = (np.prod(np.clip(box[:, 2:] - box[:, :2], 0, None), axis=1) for box in (a_xyxy, b_xyxy))
    union = area_a[:, None] + area_b[None, :] - shared
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap
