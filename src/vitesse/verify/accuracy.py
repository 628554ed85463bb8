"""Accuracy of one file on one split: feed every image, read the outputs, score them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.images import Pixels
from vitesse.data.postprocess import class_count, decode
from vitesse.data.preprocess import feeds
from vitesse.data.results import Classification, Detections, Result
from vitesse.data.split import Sample, Split
from vitesse.errors import DataError, NotVerified
from vitesse.ledger import Accuracy
from vitesse.spec import ModelSpec, Task
from vitesse.verify.agreement import classification_agreement, detection_agreement
from vitesse.verify.coco import coco_ap
from vitesse.verify.top1 import top_accuracy

Predict = Callable[[Mapping[str, NDArray[np.generic]]], Mapping[str, NDArray[Any]]]
Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracy, and the result of every image in the split's order: for pictures, and as the original's answers."""

    accuracy: Accuracy
    results: tuple[Result, ...]


def evaluate(
    predict: Predict,
    split: Split,
    spec: ModelSpec,
    *,
    reference: Sequence[Result] | None = None,
    batch: int = 1,
    on_image: Progress | None = None,
) -> Evaluation:
    """Run `predict` over `split` and measure `coco_ap`, `top1` or, without labels, `agreement`.

    Images are read, fed and forgotten batch by batch; only the results stay in memory.

    Args:
        predict: feeds by input name → outputs by name; the outputs may be overwritten by its next call.
        split: with ground truth boxes for coco_ap, with class labels for top1.
        spec: of the model.
        reference: the original model's results on the same split; without labels they are what is agreed with. None
            means that this *is* the original.
        batch: images per call; the last call may be smaller.
        on_image: called with (images done, images in all) after every call of `predict`.

    Returns:
        The accuracy with `drop` None (see `against`), and the results.

    Raises:
        DataError: an unreadable image, or labels the model has no class for.
        SpecError: the outputs contradict the spec.
        NotVerified: without labels, the original finds nothing to agree with.
    """
    if not split.samples:
        raise DataError("no images to measure accuracy on", expected="at least one")
    results: list[Result] = []
    for start in range(0, len(split), batch):
        samples = split.samples[start : start + batch]
        images = [sample.read() for sample in samples]
        outputs = predict(feeds(images, spec, [str(sample.path) for sample in samples]))
        if start == 0:
            _check_labels(split, class_count(outputs, spec))
        results += decode(outputs, spec, [_size(image) for image in images])
        if on_image is not None:
            on_image(len(results), len(split))
    return Evaluation(score(results, split, spec, reference=reference), tuple(results))


def score(
    results: Sequence[Result], split: Split, spec: ModelSpec, *, reference: Sequence[Result] | None = None
) -> Accuracy:
    """Return the accuracy of results that are already there, one per image of `split`; `drop` is None.

    Raises:
        DataError, NotVerified: as `evaluate`.
    """
    original = results if reference is None else reference
    if len(original) != len(split) or len(results) != len(split):
        raise DataError(
            f"{len(results)} results and {len(original)} of the original for {len(split)} images",
            expected="one result per image",
            cause="results of another split",
        )
    if spec.task is Task.DETECTION:
        metric, figures = _score_detections(_by_image(results, split), _by_image(original, split), split)
    else:
        metric, figures = _score_classes(_classes(results), _classes(original), split.samples)
    value = figures.pop("AP" if metric == "coco_ap" else metric)
    return Accuracy(metric, value, None, len(split), figures)


def against(accuracy: Accuracy, source: Accuracy) -> Accuracy:
    """Return `accuracy` with its drop in points against the source model's; negative when it is better.

    Raises:
        NotVerified: the two were not measured alike, so that their difference says nothing.
    """
    measured = (accuracy.metric, accuracy.images)
    if measured != (source.metric, source.images):
        raise NotVerified(
            f"{accuracy.metric} on {accuracy.images} images against {source.metric} on {source.images}",
            expected="the same metric on the same images",
            cause="a step was taken over from a run on other data",
            fix="optimize again into a new folder",
        )
    return replace(accuracy, drop=100 * (source.value - accuracy.value))


def _score_detections(
    found: Mapping[int, Detections], original: Mapping[int, Detections], split: Split
) -> tuple[str, dict[str, float]]:
    if split.truth is not None:
        return "coco_ap", coco_ap(found, split)
    return "agreement", detection_agreement(found, original)


def _score_classes(
    results: Sequence[Classification], original: Sequence[Classification], samples: Sequence[Sample]
) -> tuple[str, dict[str, float]]:
    labels = [sample.label for sample in samples if sample.label is not None]
    if len(labels) == len(samples):
        return "top1", top_accuracy(results, labels)
    return "agreement", classification_agreement(results, original)


def _by_image(results: Sequence[Result], split: Split) -> dict[int, Detections]:
    return {
        sample.image_id: result
        for sample, result in zip(split.samples, results, strict=True)
        if isinstance(result, Detections)
    }


def _classes(results: Sequence[Result]) -> list[Classification]:
    return [result for result in results if isinstance(result, Classification)]


def _check_labels(split: Split, classes: int | None) -> None:
    """Refuse labels beyond the model's classes before the whole split has been run."""
    labels = [sample.label for sample in split.samples if sample.label is not None]
    if split.truth is not None:
        labels += [int(objects.labels.max()) for objects in split.truth.values() if len(objects.labels)]
    if classes is not None and labels and max(labels) >= classes:
        raise DataError(
            f"the data has labels up to class {max(labels)}, the model has {classes} classes",
            expected=f"labels from 0 to {classes - 1}",
            cause="labels of another data set, or category ids that start at 1",
            fix="use the data the model was trained for, or give the spec its labels: classes are matched by name",
        )


def _size(image: Pixels) -> tuple[int, int]:
    height, width = image.shape[:2]
    return height, width
