"""Models broken on purpose: each must lose most of its accuracy, or the measurement is no gate."""

from functools import cache

import numpy as np
import pytest
from PIL import Image

from deimv2 import deimv2, runtime
from shared_data import shared
from vitesse.data.dataset import open_dataset
from vitesse.data.split import Sample, Split
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task
from vitesse.verify.accuracy import evaluate, score


def swapped_xy(outputs):
    return {**outputs, "boxes": outputs["boxes"][..., [1, 0, 3, 2]]}


def corners_for_centres(outputs):
    """Boxes read as centre and size although they are corners, or the other way round."""
    boxes = outputs["boxes"].copy()
    boxes[..., :2] += boxes[..., 2:] / 2
    return {**outputs, "boxes": boxes}


def scaled_boxes(outputs):
    return {**outputs, "boxes": outputs["boxes"] * np.float32(1.5)}


def scores_upside_down(outputs):
    return {**outputs, "scores": 1 - outputs["scores"]}


def next_class(outputs):
    return {**outputs, "labels": (outputs["labels"] + 1) % 80}


def nan_scores(outputs):
    return {**outputs, "scores": np.full_like(outputs["scores"], np.nan)}


def nan_boxes(outputs):
    return {**outputs, "boxes": np.full_like(outputs["boxes"], np.nan)}


def constant(outputs):
    return {**outputs, "boxes": np.zeros_like(outputs["boxes"]) + np.float32(50)}


BROKEN_DETECTORS = [
    swapped_xy,
    corners_for_centres,
    scaled_boxes,
    scores_upside_down,
    next_class,
    nan_scores,
    nan_boxes,
    constant,
]


@cache
def detector():
    """DEIMv2-Atto's outputs on a third of the COCO photos, run once: split, spec, outputs, results."""
    path, spec = deimv2()
    run = runtime(path)
    recorded = []

    def predict(inputs):
        recorded.append(run(inputs))
        return recorded[-1]

    split = open_dataset(shared("coco_ccby"), spec=spec, holdout=0).val.spread(18)
    results = evaluate(predict, split, spec).results
    return split, spec, recorded, results


def replayed(recorded, fault):
    outputs = iter(recorded)
    return lambda inputs: fault(next(outputs))


@pytest.mark.parametrize("fault", BROKEN_DETECTORS)
def test_broken_detector_loses_most_of_its_ap(fault):
    split, spec, recorded, results = detector()
    whole = score(results, split, spec).value
    assert whole > 0.3
    assert evaluate(replayed(recorded, fault), split, spec).accuracy.value < 0.25 * whole


@pytest.mark.parametrize("fault", BROKEN_DETECTORS)
def test_broken_detector_loses_most_of_its_agreement_when_there_are_no_labels(fault):
    split, spec, recorded, results = detector()
    unlabelled = Split(split.samples)
    evaluation = evaluate(replayed(recorded, fault), unlabelled, spec, reference=results)
    assert evaluation.accuracy.metric == "agreement"
    assert evaluation.accuracy.value < 0.25


CLASSES = 10
PICTURES = 60


def classes_spec():
    rules = Preprocessing((28, 28), resize=Resize.STRETCH)
    return ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, rules)


@pytest.mark.parametrize(
    "fault",
    [
        lambda logits: np.roll(logits, 1, axis=1),
        lambda logits: logits * np.float32(-1),
        lambda logits: logits * np.float32(np.nan),
        lambda logits: logits * 0,
    ],
    ids=["off_by_one_class", "negative_scale", "nan", "constant"],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_broken_classifier_loses_most_of_its_top1_and_of_its_agreement(tmp_path, fault, labelled):
    samples = []
    for index in range(PICTURES):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (28, 28), (index % CLASSES * 25,) * 3).save(path)
        samples.append(Sample(path, index, index % CLASSES if labelled else None))
    split = Split(tuple(samples))

    def whole(inputs):
        shade = inputs["x"].mean(axis=(1, 2, 3)) * 255 / 25
        return {"y": -np.abs(shade[:, None] - np.arange(CLASSES, dtype=np.float32))}

    original = evaluate(whole, split, classes_spec())
    assert original.accuracy.value == 1
    broken = evaluate(
        lambda inputs: {"y": fault(whole(inputs)["y"])}, split, classes_spec(), reference=original.results
    )
    assert broken.accuracy.value <= 0.1
