"""Results → what a client reads: a document for JSON, or the picture with what was found drawn on it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitesse.data.images import Pixels
from vitesse.data.postprocess import decode
from vitesse.data.results import Classification, Detections, Result
from vitesse.data.scaling import Size
from vitesse.serve.images import Extent, Picture
from vitesse.serve.work import Arrays
from vitesse.spec import ModelSpec

Document = dict[str, Any]

# zlib's quickest level: at 12 megapixels 0.8 s in place of 3.8 s at Pillow's own level, the file 13 % larger.
_PNG_LEVEL = 1


def results_of(outputs: Arrays, spec: ModelSpec, pictures: Sequence[Picture | Extent]) -> list[Result]:
    """Return one result per picture, boxes in pixels of the upright image as it was sent.

    Args:
        outputs: of the session, batch first, for the feeds of these pictures' pixels in this order.

    Raises:
        SpecError: as `data.postprocess.decode`.
    """
    sizes = [picture.decoded for picture in pictures]
    found = decode(outputs, spec, sizes)
    return [
        _enlarged(result, size, picture.size)
        for result, size, picture in zip(found, sizes, pictures, strict=True)
    ]


def detection(
    result: Detections,
    size: Size,
    *,
    threshold: float = 0.5,
    served_by: str = "",
    timings: Mapping[str, float] | None = None,
) -> Document:
    """Return what `/v1/detect` answers.

        {"detections": [{"label": "bag", "class": 3, "score": 0.91, "box_xyxy": [12.5, 8.0, 96.25, 80.0]}, …],
         "image": {"width": 640, "height": 480}, "threshold": 0.5, "served_by": "live", "timings_ms": {"infer": 12.3}}

    Args:
        size: (height, width) of the upright image; boxes are left, top, right, bottom in its pixels, not cut at its
            edges, highest score first.
        threshold: least score that is answered, 0..1.
        served_by: the release that answered.
        timings: seconds by stage; answered in milliseconds.
    """
    shown = result.above(threshold)
    rows = zip(
        shown.names, shown.labels.tolist(), shown.scores.tolist(), shown.boxes_xyxy.tolist(), strict=True
    )
    return {
        "detections": [
            {
                "label": name,
                "class": label,
                "score": round(score, 6),
                "box_xyxy": [round(side, 2) for side in box],
            }
            for name, label, score, box in rows
        ],
        "image": {"width": size[1], "height": size[0]},
        "threshold": threshold,
        **_service(served_by, timings),
    }


def classification(
    result: Classification,
    top: int = 5,
    *,
    size: Size | None = None,
    served_by: str = "",
    timings: Mapping[str, float] | None = None,
) -> Document:
    """Return what `/v1/classify` answers: the `top` best classes under "classes", else as `detection`.

    The list is empty where the model gave NaN throughout; it is shorter than `top` where the model has fewer classes,
    and never longer than `data.postprocess.CLASSES_KEPT`.
    """
    rows = zip(result.names[:top], result.labels[:top].tolist(), result.scores[:top].tolist(), strict=True)
    image = {} if size is None else {"image": {"width": size[1], "height": size[0]}}
    return {
        "classes": [{"label": name, "class": label, "score": round(score, 6)} for name, label, score in rows],
        **image,
        **_service(served_by, timings),
    }


def draw(pixels: Pixels, result: Result, *, threshold: float = 0.5) -> bytes:
    """Return a PNG of the picture with its detections of at least `threshold`, or its first class, drawn on it.

    Args:
        pixels: (height, width, 3) of the image as it was sent; of a reduced decoding the boxes would not fit.
    """
    picture = (
        result.draw(pixels, threshold=threshold) if isinstance(result, Detections) else result.draw(pixels)
    )
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=_PNG_LEVEL)
    return stream.getvalue()


def _enlarged(result: Result, decoded: Size, original: Size) -> Result:
    if decoded == original or isinstance(result, Classification):
        return result
    down, across = original[0] / decoded[0], original[1] / decoded[1]
    return replace(result, boxes_xyxy=result.boxes_xyxy * np.array([across, down, across, down], np.float32))


def _service(served_by: str, timings: Mapping[str, float] | None) -> Document:
    return {
        "served_by": served_by,
        "timings_ms": {stage: round(1e3 * seconds, 3) for stage, seconds in (timings or {}).items()},
    }
