"""Without labels: how far a model answers as the original does. This is agreement, not accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitesse.data.results import Classification, Detections
from vitesse.data.split import Truth
from vitesse.errors import DataError, NotVerified
from vitesse.verify.coco import average_precision

# What the original finds with at least this score is taken for an object; below, detectors mostly guess.
CONFIDENT = 0.5


def classification_agreement(
    results: Sequence[Classification], original: Sequence[Classification]
) -> dict[str, float]:
    """Return `agreement` in 0..1: the share of images whose first class is the original's first class.

    An empty result (NaN) agrees with nothing, not even with another empty one.

    Raises:
        DataError: no image.
    """
    if not results:
        raise DataError("no image to compare the models on", expected="at least one image")
    same = sum(
        len(ours.labels) > 0 and ours.labels[:1].tolist() == theirs.labels[:1].tolist()
        for ours, theirs in zip(results, original, strict=True)
    )
    return {"agreement": same / len(results)}


def detection_agreement(
    detections: Mapping[int, Detections], original: Mapping[int, Detections], *, confident: float = CONFIDENT
) -> dict[str, float]:
    """Return `agreement` in 0..1: the COCO AP of `detections` with the original's confident ones as the truth.

    Beside it the secondary figures of `average_precision`, and `objects_per_image`: how many confident detections
    an image has on average.

    Args:
        detections: image_id → what the new model found, all scores.
        original: image_id → what the original found.
        confident: score from which a detection of the original counts as an object.

    Raises:
        NotVerified: the original is confident nowhere, so that there is nothing to agree with.
    """
    truth = {image_id: _as_truth(found.above(confident)) for image_id, found in original.items()}
    objects = sum(len(found.labels) for found in truth.values())
    if objects == 0:
        raise NotVerified(
            f"the original model finds nothing with a score of {confident} or more in {len(original)} images",
            expected="some confident detections to compare with",
            cause="images of another kind than the model was trained on, or a wrong spec",
            fix="use images the model knows, or data with labels",
        )
    figures = average_precision(detections, truth)
    return {"agreement": figures.pop("AP"), **figures, "objects_per_image": objects / len(original)}


def _as_truth(found: Detections) -> Truth:
    boxes = found.boxes_xyxy.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Truth(boxes, found.labels, np.zeros(len(found), np.bool_), sides[:, 0] * sides[:, 1])
