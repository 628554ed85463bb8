import importlib
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from shared_data import shared
from vitesse.data.dataset import open_dataset
from vitesse.data.results import Detections
from vitesse.data.split import Truth
from vitesse.errors import DataError, MissingExtra
from vitesse.verify.coco import average_precision, coco_ap


def found(boxes, labels, scores):
    count = len(labels)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        ("thing",) * count,
    )


def truth(boxes, labels, crowd=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Truth(boxes, np.array(labels, np.int64), np.array(crowd or [False] * len(labels), np.bool_), area)


A, B, FAR = [0, 0, 50, 50], [60, 60, 100, 100], [300, 300, 340, 340]


def test_perfect_detections_score_one_and_absent_sizes_are_left_out():
    figures = average_precision({7: found([A, B], [0, 3], [0.9, 0.8])}, {7: truth([A, B], [0, 3])})
    assert figures == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "AP_medium": 1, "AR100": 1})


def test_nothing_found_scores_zero():
    for detections in ({}, {7: found([], [], [])}):
        assert average_precision(detections, {7: truth([A], [0])})["AP"] == 0


def test_image_without_detections_counts_as_missed():
    figures = average_precision({1: found([A], [0], [0.9])}, {1: truth([A], [0]), 2: truth([A], [0])})
    assert figures["AP50"] == pytest.approx(51 / 101)


def test_every_query_counts_however_low_its_score():
    sure = average_precision({1: found([A, FAR], [0, 0], [0.9, 0.001])}, {1: truth([A, FAR], [0, 0])})
    assert sure["AP"] == pytest.approx(1)


def test_false_alarm_with_a_high_score_costs_precision():
    figures = average_precision({1: found([FAR, A], [0, 0], [0.9, 0.5])}, {1: truth([A], [0])})
    assert figures["AP"] == pytest.approx(0.5)


def test_false_alarm_in_an_image_without_objects_counts():
    figures = average_precision(
        {1: found([A], [0], [0.5]), 2: found([A], [0], [0.9])}, {1: truth([A], [0]), 2: truth([], [])}
    )
    assert figures["AP"] == pytest.approx(0.5)


def test_detection_on_a_crowd_is_neither_right_nor_wrong():
    figures = average_precision(
        {1: found([B, A], [0, 0], [0.9, 0.5])}, {1: truth([A, B], [0, 0], crowd=[False, True])}
    )
    assert figures["AP"] == pytest.approx(1)


def test_nothing_is_printed(capsys):
    average_precision({1: found([A], [0], [0.9])}, {1: truth([A], [0])})
    assert capsys.readouterr().out == ""


def test_images_without_any_object_cannot_be_measured():
    with pytest.raises(DataError, match="none of the 2 images has a labelled object"):
        average_precision({1: found([A], [0], [0.9])}, {1: truth([], []), 2: truth([], [])})


def test_missing_pycocotools_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    monkeypatch.delitem(sys.modules, "vitesse.verify.coco")
    with pytest.raises(MissingExtra, match=r"pip install 'vitesse\[optimize\]'"):
        importlib.import_module("vitesse.verify.coco")


def test_split_without_boxes_cannot_be_measured():
    split = open_dataset(shared("vit_fashion")).val
    with pytest.raises(DataError, match="needs labelled boxes"):
        coco_ap({}, split)


def test_figures_equal_pycocotools_on_the_untouched_json(capsys):
    """Ground truth and detections that went through Vitesse's own types, against the JSON read by pycocotools."""
    folder = shared("coco_ccby")
    split = open_dataset(folder, holdout=0).val
    random = np.random.default_rng(0)
    detections, rows = {}, []
    for annotation in json.loads((folder / "annotations.json").read_text())["annotations"]:
        box = np.array(annotation["bbox"]) + random.normal(0, 6, 4)
        rows.append([annotation["image_id"], *box, random.uniform(), annotation["category_id"]])
    for image_id in {row[0] for row in rows}:
        own = np.array([row for row in rows if row[0] == image_id])
        corners = np.column_stack((own[:, 1:3], own[:, 1:3] + own[:, 3:5]))
        detections[image_id] = found(corners, own[:, 6], own[:, 5])
    plain = COCO(str(folder / "annotations.json"))
    evaluation = COCOeval(plain, plain.loadRes(np.array(rows)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = coco_ap(detections, split)
    assert 0.2 < figures["AP"] < 0.8
    names = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR100": 8}
    assert figures == pytest.approx(
        {name: evaluation.stats[place] for name, place in names.items()}, abs=1e-4
    )
