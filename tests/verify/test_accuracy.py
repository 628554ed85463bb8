import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from deimv2 import deimv2, runtime
from shared_data import shared
from vitesse.data.dataset import open_dataset
from vitesse.data.split import Sample, Split
from vitesse.errors import DataError, NotVerified
from vitesse.ledger import Accuracy
from vitesse.spec import METADATA_KEY, Decode, ModelSpec, Preprocessing, Resize, Task, spec_from_mapping
from vitesse.verify.accuracy import against, evaluate, score

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fashion"


def fashion(name):
    path = EXAMPLES / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} has not been made (python examples/fashion/make.py)")
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return path, spec_from_mapping(json.loads(properties[METADATA_KEY]))


# --- real models give the figures that are published for them


def test_deimv2_has_its_known_ap_on_the_coco_photos():
    path, spec = deimv2()
    seen = []
    evaluation = evaluate(
        runtime(path),
        open_dataset(shared("coco_ccby"), spec=spec, holdout=0).val,
        spec,
        batch=4,
        on_image=lambda done, total: seen.append((done, total)),
    )
    accuracy = evaluation.accuracy
    assert (accuracy.metric, accuracy.images, accuracy.drop) == ("coco_ap", 53, None)
    assert accuracy.value == pytest.approx(0.3645, abs=0.001)
    assert accuracy.details["AP50"] == pytest.approx(0.5038, abs=0.001)
    assert len(evaluation.results) == 53
    assert seen[0] == (4, 53)
    assert seen[-1] == (53, 53)


def test_detr_fashion_has_its_known_ap():
    path, spec = fashion("detr_fashion")
    accuracy = evaluate(
        runtime(path), open_dataset(shared("detr_fashion"), spec=spec).val, spec, batch=8
    ).accuracy
    assert accuracy.metric == "coco_ap"
    assert accuracy.value == pytest.approx(0.8259, abs=0.001)
    known = {"AP50": 0.9282, "AP75": 0.9165, "AP_small": 0.7189, "AP_medium": 0.8424, "AP_large": 0.8768}
    assert dict(accuracy.details) == pytest.approx({**known, "AR100": 0.9068}, abs=0.001)


def test_vit_fashion_has_its_known_top1():
    path, spec = fashion("vit_fashion")
    accuracy = evaluate(
        runtime(path), open_dataset(shared("vit_fashion"), spec=spec).val, spec, batch=16
    ).accuracy
    assert (accuracy.metric, accuracy.images) == ("top1", 2000)
    assert accuracy.value == pytest.approx(0.9345, abs=0.001)
    assert accuracy.details["top5"] > 0.99


def test_deimv2_without_labels_agrees_with_itself():
    path, spec = deimv2()
    split = Split(open_dataset(shared("coco_ccby"), spec=spec, holdout=0).val.samples[:10])
    evaluation = evaluate(runtime(path), split, spec)
    assert evaluation.accuracy.metric == "agreement"
    assert evaluation.accuracy.value == pytest.approx(1)
    assert score(evaluation.results, split, spec, reference=evaluation.results) == evaluation.accuracy


# --- the rules, on pictures whose colour is their class

SHADES = (0, 80, 160, 240)


def shades(folder, labelled=True, count=8):
    samples = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.new("RGB", (4, 4), (SHADES[index % 4],) * 3).save(path)
        samples.append(Sample(path, index, index % 4 if labelled else None))
    return Split(tuple(samples))


def shade_spec(labels=()):
    rules = Preprocessing((4, 4), resize=Resize.NONE, scale=1.0)
    return ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, rules, labels=tuple(labels))


def nearest_shade(inputs):
    shade = inputs["x"].mean(axis=(1, 2, 3))
    return {"y": -np.abs(shade[:, None] - np.array(SHADES, np.float32))}


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_result_does_not_depend_on_the_batch(tmp_path, batch):
    evaluation = evaluate(nearest_shade, shades(tmp_path), shade_spec("abcd"), batch=batch)
    assert evaluation.accuracy == Accuracy("top1", 1.0, None, 8)
    assert [result.names[0] for result in evaluation.results] == list("abcdabcd")


def test_images_are_read_one_batch_at_a_time(tmp_path, monkeypatch):
    read, calls = [], []
    original = Sample.read
    monkeypatch.setattr(Sample, "read", lambda sample: (read.append(sample.image_id), original(sample))[1])

    def predict(inputs):
        calls.append(len(read))
        return nearest_shade(inputs)

    evaluate(predict, shades(tmp_path), shade_spec(), batch=2)
    assert calls == [2, 4, 6, 8]


def test_runtime_that_reuses_its_output_buffer_is_read_in_time(tmp_path):
    buffer = np.empty((1, 4), np.float32)

    def predict(inputs):
        buffer[:] = nearest_shade(inputs)["y"]
        return {"y": buffer}

    assert evaluate(predict, shades(tmp_path), shade_spec()).accuracy.value == 1


def test_without_labels_a_model_is_measured_by_its_agreement_with_the_original(tmp_path):
    split = shades(tmp_path, labelled=False)
    original = evaluate(nearest_shade, split, shade_spec())
    assert original.accuracy == Accuracy("agreement", 1.0, None, 8)

    def confused(inputs):
        logits = nearest_shade(inputs)["y"]
        logits[:, 3] = -1000
        return {"y": logits}

    evaluation = evaluate(confused, split, shade_spec(), reference=original.results)
    assert evaluation.accuracy == Accuracy("agreement", 0.75, None, 8)


def test_labels_the_model_has_no_class_for_are_refused_after_the_first_image(tmp_path):
    split = shades(tmp_path)
    calls = []

    def three_classes(inputs):
        calls.append(1)
        return {"y": np.zeros((1, 3), np.float32)}

    with pytest.raises(DataError, match="labels up to class 3, the model has 3 classes"):
        evaluate(three_classes, split, shade_spec())
    assert len(calls) == 1


def test_empty_split_and_results_of_another_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images to measure accuracy on"):
        evaluate(nearest_shade, Split(()), shade_spec())
    split = shades(tmp_path)
    results = evaluate(nearest_shade, split, shade_spec()).results
    with pytest.raises(DataError, match="8 results and 7 of the original for 8 images"):
        score(results, split, shade_spec(), reference=results[1:])


def test_drop_is_in_points_and_negative_when_better():
    source = Accuracy("top1", 0.9, None, 100)
    assert against(replace(source, value=0.895), source).drop == pytest.approx(0.5)
    assert against(replace(source, value=0.91), source).drop == pytest.approx(-1)
    assert against(source, source).drop == 0


@pytest.mark.parametrize("other", [{"images": 99}, {"metric": "agreement"}])
def test_figures_that_were_not_measured_alike_are_not_compared(other):
    source = Accuracy("top1", 0.9, None, 100)
    with pytest.raises(NotVerified, match="the same metric on the same images"):
        against(replace(source, **other), source)
