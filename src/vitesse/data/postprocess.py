"""A model's raw outputs → detections or classes, in pixels of the original images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.boxes import Placement, cxcywh_to_xyxy
from vitesse.data.preprocess import boxes_in_input_pixels, place, tensor_size
from vitesse.data.results import Classification, Detections, Result
from vitesse.errors import SpecError
from vitesse.spec import Decode, ModelSpec

# More than any top-k asked for, few enough that a result of a 21,000-class model stays small.
CLASSES_KEPT = 100

Floats = NDArray[np.float32]


def decode(
    outputs: Mapping[str, NDArray[Any]], spec: ModelSpec, sizes: Sequence[tuple[int, int]]
) -> list[Result]:
    """Return one result per image, highest score first; arrays are copies, free of the session's buffers.

    Args:
        outputs: the graph's outputs by name, batch first.
        spec: says which output is what and how it is read.
        sizes: (height, width) of each original image, in batch order.

    Detections are not thresholded and not clipped to the image: every query counts, as in DETR's evaluation.
    NaN is never a score: a class or a query with a NaN score, or with a box that is not finite, is left out, so
    a broken model gives empty results rather than a crash or a lucky guess. So are negative labels, which some
    graphs fill up with.

    Raises:
        SpecError: an output is missing or has another shape or number of classes than the spec says.
    """
    raw = {role: _output(outputs, name, role) for role, name in spec.outputs.items()}
    for role, array in raw.items():
        _check_rank(array, role, spec, len(sizes))
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # NaN and Inf of a broken model are dropped by name below
        return _read(raw, spec, sizes)


def _read(raw: Mapping[str, NDArray[Any]], spec: ModelSpec, sizes: Sequence[tuple[int, int]]) -> list[Result]:
    if spec.decode is Decode.LOGITS:
        return list(_classes(raw["logits"], spec))
    if spec.decode is Decode.POSTPROCESSED:
        _check_queries(raw, "labels", "scores", "boxes")
        found = [
            _postprocessed(*image) for image in zip(raw["labels"], raw["scores"], raw["boxes"], strict=True)
        ]
    else:
        _check_queries(raw, "logits", "boxes")
        read = _softmax_queries if spec.decode is Decode.DETR_SOFTMAX else _sigmoid_queries
        found = [read(*image, spec) for image in zip(raw["logits"], raw["boxes"], strict=True)]
    return [_detections(*image, spec, size) for image, size in zip(found, sizes, strict=True)]


def class_count(outputs: Mapping[str, NDArray[Any]], spec: ModelSpec) -> int | None:
    """Return how many classes the model tells apart, by the shape of its logits; None when it shows none."""
    if spec.decode is Decode.POSTPROCESSED:
        return len(spec.labels) or None
    classes = int(_output(outputs, spec.outputs["logits"], "logits").shape[-1])
    return classes - 1 if spec.decode is Decode.DETR_SOFTMAX else classes


def _classes(logits: NDArray[Any], spec: ModelSpec) -> list[Classification]:
    _check_classes(logits.shape[1], spec)
    probabilities = _softmax(logits)
    results = []
    for row in probabilities:
        order = _best(row, min(len(row), CLASSES_KEPT))
        names = tuple(spec.label(int(index)) for index in order)
        results.append(Classification(order.astype(np.int64), row[order], names))
    return results


def _softmax_queries(
    logits: Floats, boxes: Floats, spec: ModelSpec
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    _check_classes(logits.shape[1] - 1, spec, no_object=True)
    probabilities = _softmax(logits)[:, :-1]
    labels = np.argmax(np.nan_to_num(probabilities, nan=-1.0), axis=1)
    scores = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    return cxcywh_to_xyxy(boxes.astype(np.float32)), scores, labels.astype(np.int64)


def _sigmoid_queries(
    logits: Floats, boxes: Floats, spec: ModelSpec
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Best `top_k` of all pairs of query and class, as in Deformable DETR and RT-DETR."""
    classes = logits.shape[1]
    _check_classes(classes, spec)
    flat = logits.astype(np.float32).reshape(-1)
    pairs = _best(flat, min(spec.top_k, flat.size))
    scores = 0.5 * (1 + np.tanh(0.5 * flat[pairs]))  # the sigmoid, written so that it cannot overflow
    corners = cxcywh_to_xyxy(boxes.astype(np.float32))
    return corners[pairs // classes], scores.astype(np.float32), (pairs % classes).astype(np.int64)


def _postprocessed(
    labels: NDArray[Any], scores: NDArray[Any], boxes: NDArray[Any]
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    whole = np.nan_to_num(labels.astype(np.float64), nan=-1.0) if labels.dtype.kind == "f" else labels
    return boxes.astype(np.float32), scores.astype(np.float32), whole.astype(np.int64)


def _detections(
    boxes: Floats, scores: Floats, labels: NDArray[np.int64], spec: ModelSpec, size: tuple[int, int]
) -> Detections:
    order = _best(scores, len(scores))
    order = order[np.isfinite(boxes[order]).all(axis=1) & (labels[order] >= 0)]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    _check_labels(labels, spec)
    placed = place(size, spec.preprocessing)
    in_input_pixels = spec.decode is not Decode.POSTPROCESSED or boxes_in_input_pixels(spec)
    if spec.decode is not Decode.POSTPROCESSED:
        height, width = _unit(placed, spec)
        boxes = boxes * np.array((width, height, width, height), np.float32)
    if in_input_pixels:
        boxes = placed.to_original(boxes)
    names = tuple(spec.label(index) for index in labels.tolist())
    return Detections(boxes, scores, labels, names)


def _unit(placed: Placement, spec: ModelSpec) -> tuple[int, int]:
    """What boxes of 0..1 are relative to, (height, width) in pixels: the image alone where the model masks padding."""
    if spec.valid_size_input is None:
        return tensor_size([placed], spec.preprocessing)
    return placed.resized


def _softmax(logits: NDArray[Any]) -> Floats:
    """Softmax over the last axis; NaN stays NaN for its own class only, +inf counts as the largest float32.

    A row of -inf alone is NaN throughout.
    """
    values = logits.astype(np.float32)
    missing = np.isnan(values)
    values = np.minimum(np.where(missing, np.float32(-np.inf), values), np.finfo(np.float32).max)
    top = values.max(axis=-1, keepdims=True)
    powers: Floats = np.exp(values - np.where(np.isfinite(top), top, 0), dtype=np.float32)
    total = powers.sum(axis=-1, keepdims=True)
    probabilities: Floats = np.divide(powers, total, out=np.full_like(powers, np.nan), where=total > 0)
    probabilities[missing] = np.nan
    return probabilities


def _best(scores: Floats, count: int) -> NDArray[np.intp]:
    """Indices of the `count` highest scores, highest first, ties by index, NaN left out."""
    kept = np.flatnonzero(~np.isnan(scores))
    if count < len(kept):
        threshold = np.partition(scores[kept], len(kept) - count)[len(kept) - count] if count else np.inf
        kept = kept[scores[kept] >= threshold]
    return kept[np.argsort(-scores[kept], kind="stable")][:count]


def _output(outputs: Mapping[str, NDArray[Any]], name: str, role: str) -> NDArray[Any]:
    if name not in outputs:
        raise SpecError(
            f"the model has no output {name!r} for {role}",
            expected=f"one of its outputs: {', '.join(map(repr, outputs))}",
            fix="correct `outputs` in the spec",
        )
    return np.asarray(outputs[name])


_LAST: Mapping[str, str] = {"logits": "classes", "boxes": "4"}


def _check_rank(array: NDArray[Any], role: str, spec: ModelSpec, images: int) -> None:
    expected = ["N"] if spec.decode is Decode.LOGITS else ["N", "queries"]
    expected += [_LAST[role]] if role in _LAST else []
    fits = array.ndim == len(expected) and (role != "boxes" or array.shape[-1] == 4)
    if not fits:
        raise SpecError(
            f"output {spec.outputs[role]!r} ({role}) has shape {array.shape}",
            expected=f"({', '.join(expected)}) for decode = {spec.decode.value!r}",
            cause="another decode rule fits this model, or two outputs are swapped in the spec",
            fix="correct `decode` or `outputs` in the spec",
        )
    if array.shape[0] != images:
        raise SpecError(
            f"output {spec.outputs[role]!r} ({role}) holds {array.shape[0]} images",
            expected=f"{images}, as many as were fed",
            cause="a batch size fixed in the graph",
            fix="run with the batch size of the export",
        )


def _check_queries(raw: Mapping[str, NDArray[Any]], *roles: str) -> None:
    counts = {role: raw[role].shape[1] for role in roles}
    if len(set(counts.values())) > 1:
        raise SpecError(
            "the outputs disagree on the number of queries: "
            + ", ".join(f"{role} {count}" for role, count in counts.items()),
            expected="one number",
            cause="outputs of different layers or heads in the spec",
            fix="correct `outputs` in the spec",
        )


def _check_classes(classes: int, spec: ModelSpec, *, no_object: bool = False) -> None:
    if spec.labels and classes != len(spec.labels):
        also = " and one for no-object" if no_object else ""
        raise SpecError(
            f"the model has {classes} classes{also}, the spec names {len(spec.labels)} labels",
            expected="one label per class",
            cause="labels of another data set, or another decode rule",
            fix="correct `labels` or `decode` in the spec",
        )


def _check_labels(labels: NDArray[np.int64], spec: ModelSpec) -> None:
    if spec.labels and len(labels) and int(labels.max()) >= len(spec.labels):
        raise SpecError(
            f"the model answered class {int(labels.max())}, the spec names {len(spec.labels)} labels",
            expected=f"classes 0 to {len(spec.labels) - 1}",
            cause="labels of another data set, or category ids with gaps",
            fix="correct `labels` in the spec",
        )
