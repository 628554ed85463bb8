"""COCO average precision of detections, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.boxes import xyxy_to_xywh
from vitesse.data.results import Detections
from vitesse.data.split import Split, Truth
from vitesse.errors import DataError, MissingExtra

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError as error:
    raise MissingExtra("pycocotools is not installed", fix="pip install 'vitesse[optimize]'") from error

# The places of pycocotools' `stats`; 6 and 7 are recall at 1 and 10 detections.
_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR100": 8}


def coco_ap(detections: Mapping[int, Detections], split: Split) -> dict[str, float]:
    """Return AP, AP50, AP75, AP_small, AP_medium, AP_large and AR100 in 0..1 on the images of `split`.

    Every detection counts, without a threshold, up to the 100 best of each class in an image (COCO's protocol and
    DETR's). A figure for which no object exists, such as AP_large without large objects, is left out.

    Args:
        detections: image_id → what was found; an image that is missing counts as one where nothing was found.
        split: has ground truth.

    Raises:
        DataError: no object is labelled, so that there is nothing to measure.
    """
    if split.truth is None:
        raise DataError("average precision needs labelled boxes", expected="a COCO JSON beside the images")
    return average_precision(
        detections, {sample.image_id: split.truth[sample.image_id] for sample in split.samples}
    )


def average_precision(detections: Mapping[int, Detections], truth: Mapping[int, Truth]) -> dict[str, float]:
    """As `coco_ap`, for ground truth that need not come from a file: image_id → labelled objects.

    Raises:
        DataError: `truth` holds no object.
    """
    if not any(len(objects.labels) for objects in truth.values()):
        raise DataError(
            f"none of the {len(truth)} images has a labelled object",
            expected="at least one box to measure average precision against",
            fix="use images with labels, or leave the JSON away to measure agreement with the original model",
        )
    rows = _rows({key: detections[key] for key in truth if key in detections})
    if not len(rows):
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AR100": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and tables
        annotated = _annotated(truth, set(rows[:, 6].astype(int).tolist()))
        evaluation = COCOeval(annotated, annotated.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 stands for "no such object"
    return {
        name: float(evaluation.stats[place]) for name, place in _STATS.items() if evaluation.stats[place] >= 0
    }


def _annotated(truth: Mapping[int, Truth], found: set[int]) -> Any:
    """Ground truth as pycocotools holds it; annotation ids start at 1, as it takes 0 for "not matched"."""
    annotations: list[dict[str, Any]] = []
    for image_id, objects in truth.items():
        boxes = xyxy_to_xywh(objects.boxes_xyxy).tolist()
        columns = zip(
            boxes, objects.labels.tolist(), objects.iscrowd.tolist(), objects.area.tolist(), strict=True
        )
        annotations += [
            {
                "id": len(annotations) + count,
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "iscrowd": int(crowd),
                "area": area,
            }
            for count, (box, label, crowd, area) in enumerate(columns, start=1)
        ]
    annotated = COCO()
    classes = sorted(found | {annotation["category_id"] for annotation in annotations})
    annotated.dataset = {
        "images": [{"id": image_id} for image_id in truth],
        "annotations": annotations,
        "categories": [{"id": label} for label in classes],
    }
    annotated.createIndex()
    return annotated


def _rows(detections: Mapping[int, Detections]) -> NDArray[np.float64]:
    """(n, 7) float64: image_id, left, top, width, height, score, class."""
    parts = [
        np.column_stack(
            (
                np.full(len(found), image_id, np.float64),
                xyxy_to_xywh(found.boxes_xyxy.astype(np.float64)),
                found.scores,
                found.labels,
            )
        )
        for image_id, found in detections.items()
    ]
    return np.concatenate(parts) if parts else np.empty((0, 7))
