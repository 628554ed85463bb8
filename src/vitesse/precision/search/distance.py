"""How far a model's answers lie from the original's, as one figure that a few images already tell.

Accuracy counts detections that pass a threshold and classes that come first: on a few dozen images a small change shows
in none or in one. The answers themselves move with every change, and are compared without thresholds:

    classes      √( Σ(c − r)² / Σr² ) of the logits r and c, each image's mean taken out, as softmax does not see it
    detections   √( ½ Σᵢ(sᵢ − kᵢ)² / Σᵢsᵢ²  +  the same with the models exchanged ), where sᵢ is a detection's score and
                 kᵢ what the other model keeps of it: the largest score · IoU among its detections of the same class,
                 sᵢ at most

0 = equal. Squares of errors with independent causes add up, which the search builds on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vitesse.backends.protocol import Array
from vitesse.data.results import Detections
from vitesse.verify.matching import iou

# Answers that cannot be read or are not finite have nothing in common with the original's.
NOTHING_IN_COMMON = 1.0
# Detections below weigh less than a ten-thousandth of a sure one; DETR gives a hundred of them for every image.
LEAST_SCORE = 0.01


@dataclass
class _Ratio:
    moved: float = 0.0
    size: float = 0.0

    def add(self, difference: Array, size: Array) -> None:
        self.moved += float(np.sum(np.square(difference, dtype=np.float64)))
        self.size += float(np.sum(np.square(size, dtype=np.float64)))

    def value(self) -> float:
        return self.moved / self.size if self.size else 0.0


class Distance:
    """Takes in the answers of both models, image by image; `value` is the distance so far."""

    def __init__(self) -> None:
        self._lost, self._invented, self._logits = _Ratio(), _Ratio(), _Ratio()

    def add_logits(self, reference: Array, candidate: Array) -> None:
        """Compare logits, (…, classes) both."""
        r, c = (array.astype(np.float64) for array in (reference, candidate))
        r, c = (array - array.mean(axis=-1, keepdims=True) for array in (r, c))
        self._logits.add(c - r, r)

    def add_detections(self, reference: Detections, candidate: Detections) -> None:
        """Compare what was found in one image, in pixels of that image."""
        r, c = reference.above(LEAST_SCORE), candidate.above(LEAST_SCORE)
        overlap = iou(r.boxes_xyxy, c.boxes_xyxy)
        overlap[r.labels[:, None] != c.labels[None, :]] = 0.0
        for found, other, shared, ratio in (
            (r, c, overlap, self._lost),
            (c, r, overlap.T, self._invented),
        ):
            kept = (shared * other.scores[None, :]).max(axis=1, initial=0.0)
            ratio.add(found.scores - np.minimum(kept, found.scores), found.scores)

    def value(self) -> float:
        """Return the distance, 0 or more."""
        squared = self._logits.value() + (self._lost.value() + self._invented.value()) / 2
        return math.sqrt(squared) if math.isfinite(squared) else NOTHING_IN_COMMON
