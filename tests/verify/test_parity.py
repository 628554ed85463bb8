from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_graphs
from vitesse.verify.matching import iou
from vitesse.verify.parity import OutputParity, ParityMeter

Outputs = dict[str, NDArray[np.generic]]
RANDOM = np.random.default_rng(1)


def _logits(count: int = 4) -> list[Outputs]:
    return [{"logits": RANDOM.normal(size=(1, 6)).astype(np.float32)} for _ in range(count)]


def _detections(count: int = 30, images: int = 3) -> list[Outputs]:
    """Sorted post-processed detections with well separated boxes and scores from 0.9 down to 0.001."""
    found = []
    for image in range(images):
        corner = np.stack(np.meshgrid(np.arange(6) * 50.0, np.arange(5) * 50.0), -1).reshape(-1, 2)[:count]
        boxes = np.concatenate((corner, corner + 30 + image), axis=1).astype(np.float32)
        scores = np.geomspace(0.9 - 0.01 * image, 0.001, count).astype(np.float32)
        labels = (np.arange(count) + image) % 4
        found.append({"labels": labels[None].astype(np.int64), "boxes": boxes[None], "scores": scores[None]})
    return found


def _compared(reference: list[Outputs], candidate: list[Outputs], **spec: object) -> ParityMeter:
    meter = ParityMeter(tiny_graphs.postprocessed_spec(**spec)) if "boxes" in reference[0] else ParityMeter()
    for index, (one, other) in enumerate(zip(reference, candidate, strict=True)):
        meter.add(one, other, image=f"{index}.jpg")
    return meter


def _copy(outputs: list[Outputs]) -> list[Outputs]:
    return [{name: array.copy() for name, array in entry.items()} for entry in outputs]


def _line(meter: ParityMeter, output: str) -> OutputParity:
    return next(line for line in meter.table() if line.output == output)


def test_equal_outputs_have_no_distance() -> None:
    outputs = _logits()
    parity = _compared(outputs, outputs).parity()
    assert parity is not None
    assert (parity.max_abs, parity.max_rel) == (0.0, 0.0)
    assert parity.cosine == pytest.approx(1.0, abs=1e-12)


def test_nothing_compared_is_no_parity() -> None:
    assert ParityMeter().parity() is None


def test_the_figures_follow_their_definitions() -> None:
    meter = ParityMeter()
    meter.add({"y": np.array([[3.0, 4.0]])}, {"y": np.array([[3.0, 4.5]])}, image="a.jpg")
    meter.add({"y": np.array([[10.0, 0.0]])}, {"y": np.array([[10.0, 1.0]])}, image="b.jpg")
    (line,) = meter.table()
    assert (line.max_abs, line.max_rel, line.reference_peak) == (1.0, 0.1, 10.0)
    assert line.cosine == pytest.approx(min(10 / np.sqrt(101), 27 / (5 * np.sqrt(29.25))))
    assert line.worst_image == "b.jpg"


def test_the_relative_error_does_not_depend_on_the_order_or_explode_near_zero() -> None:
    reference = [{"y": np.array([[1e-9, 0.0]])}, {"y": np.array([[5.0, 1.0]])}]
    candidate = [{"y": np.array([[2e-9, 1e-9]])}, {"y": np.array([[5.0, 1.0]])}]
    forward = _compared(reference, candidate).parity()
    backward = _compared(reference[::-1], candidate[::-1]).parity()
    assert forward is not None and backward is not None
    assert forward.max_rel == backward.max_rel == pytest.approx(2e-10)


def test_a_difference_from_an_all_zero_reference_has_no_relative_error() -> None:
    parity = _compared([{"y": np.zeros((1, 3))}], [{"y": np.ones((1, 3))}]).parity()
    assert parity is not None
    assert (parity.max_rel, parity.cosine, parity.worst_output) == (None, 0.0, "y")


def test_scaled_outputs_show_in_the_relative_error_and_not_in_the_cosine() -> None:
    outputs = _logits()
    parity = _compared(
        outputs, [{"logits": entry["logits"] * np.float32(1.05)} for entry in outputs]
    ).parity()
    assert parity is not None
    assert parity.max_rel == pytest.approx(0.05, rel=1e-3)
    assert parity.cosine > 0.999999


def test_large_values_do_not_overflow_the_cosine() -> None:
    huge = [{"y": np.array([[1e200, 2e200]])}]
    assert _line(_compared(huge, huge), "y").cosine == pytest.approx(1.0)


def test_nan_on_one_side_spoils_the_cosine_and_is_a_finding() -> None:
    outputs = _logits()
    broken = _copy(outputs)
    broken[2]["logits"][0, 0] = np.nan
    meter = _compared(outputs, broken)
    parity = meter.parity()
    assert parity is not None and parity.cosine == -1.0
    assert [finding.text for finding in meter.findings()] == [
        "the output `logits` holds NaN in 1 of 4 images (first: 2.jpg)"
    ]


def test_nan_in_the_same_place_of_both_is_still_a_finding() -> None:
    broken = _logits()
    broken[1]["logits"][0, 3] = np.nan
    meter = _compared(broken, broken)
    texts = [finding.text for finding in meter.findings()]
    assert texts[0].startswith("the output `logits` holds NaN in 1 of 4")
    assert texts[1].startswith("the original model: the output `logits` holds NaN")
    parity = meter.parity()
    assert parity is not None and parity.cosine == -1.0


def test_an_output_that_the_spec_does_not_read_may_be_gone() -> None:
    both = {"logits": np.ones((1, 64, 5), np.float32), "boxes": np.ones((1, 64, 4), np.float32)}
    meter = ParityMeter(tiny_graphs.detector_spec())
    meter.add({**both, "aux": np.ones((5, 1, 64, 5), np.float32)}, both)
    assert [finding for finding in meter.findings() if finding.kind == "missing"] == []
    assert [line.output for line in meter.table()] == ["logits", "boxes"]
    meter.add({**both, "aux": np.ones(5)}, {"logits": both["logits"]})
    assert [finding.output for finding in meter.findings() if finding.kind == "missing"] == ["boxes"]


def test_another_shape_and_a_missing_output_are_findings() -> None:
    reference = [{"a": np.ones((1, 3)), "b": np.ones((1, 3))}]
    meter = _compared(reference, [{"a": np.ones((1, 4)), "c": np.ones(1)}])
    assert [finding.text for finding in meter.findings() if finding.kind in ("shape", "missing")] == [
        "the output `a` has shape (1, 4), the original has (1, 3) (first: 0.jpg)",
        "the output `b` is missing; there are `a`, `c`",
    ]
    assert all(finding.fatal for finding in meter.findings() if finding.kind in ("shape", "missing"))
    assert meter.parity() is None


def test_integer_outputs_report_the_share_that_differs() -> None:
    meter = _compared([{"ids": np.array([[1, 2, 3, 4]])}], [{"ids": np.array([[1, 2, 9, 4]])}])
    (line,) = meter.table()
    assert (line.max_rel, line.max_abs, line.cosine) == (0.25, 6.0, None)


def test_detections_that_swap_places_on_a_tie_are_the_same_set() -> None:
    reference = _detections()
    swapped = _copy(reference)
    for entry in swapped:
        entry["scores"][0, 4] = entry["scores"][0, 3]  # what the original gives, up to rounding
        for name in ("labels", "boxes"):
            entry[name][0, [3, 4]] = entry[name][0, [4, 3]]
    reference_tied = _copy(reference)
    for entry in reference_tied:
        entry["scores"][0, 4] = entry["scores"][0, 3]
    parity = _compared(reference_tied, swapped).parity()
    assert parity is not None
    assert (parity.max_abs, parity.max_rel) == (0.0, 0.0)


def test_exchanged_detections_below_the_confident_ones_do_not_count() -> None:
    reference = _detections()
    candidate = _copy(reference)
    for entry in candidate:
        entry["boxes"][0, -1] += 500
        entry["labels"][0, -1] = 3 - entry["labels"][0, -1]
    parity = _compared(reference, candidate).parity()
    assert parity is not None and parity.max_rel == 0.0


def test_moved_boxes_are_measured_in_pixels() -> None:
    reference = _detections()
    candidate = _copy(reference)
    candidate[1]["boxes"][0, 2, 0] += 1.5
    meter = _compared(reference, candidate)
    assert _line(meter, "boxes").max_abs == 1.5
    assert _line(meter, "boxes").worst_image == "1.jpg"


@pytest.mark.parametrize("fault", ["class", "coordinates", "lost", "invented"])
def test_wrong_detections_lose_their_counterparts(fault: str) -> None:
    reference = _detections()
    candidate = _copy(reference)
    for entry in candidate:
        if fault == "class":
            entry["labels"] = (entry["labels"] + 1) % 4
        elif fault == "coordinates":
            entry["boxes"] = entry["boxes"][..., [1, 0, 3, 2]]
        elif fault == "lost":
            entry["boxes"][0, 0] = (900, 900, 950, 950)
            entry["scores"][0, 0] = 0.0001
        else:
            entry["boxes"][0, -1] = (900, 900, 950, 950)
            entry["scores"][0, -1] = 0.99
    line = _line(_compared(reference, candidate), "labels")
    assert line.max_rel is not None and line.max_rel > 0.02


def test_a_box_that_shrinks_to_nothing_has_no_counterpart() -> None:
    reference = _detections()
    candidate = _copy(reference)
    for entry in candidate:
        entry["boxes"][..., 2:] = entry["boxes"][..., :2]
    assert _line(_compared(reference, candidate), "labels").max_rel == 1.0


def test_raw_queries_of_a_sigmoid_detector_may_be_reordered() -> None:
    logits = RANDOM.normal(size=(1, 20, 4)).astype(np.float32)
    boxes = RANDOM.uniform(0.2, 0.4, size=(1, 20, 4)).astype(np.float32)
    order = RANDOM.permutation(20)
    spec = tiny_graphs.detector_spec(decode="detr_sigmoid")
    meter = ParityMeter(spec)
    meter.add({"logits": logits, "boxes": boxes}, {"logits": logits[:, order], "boxes": boxes[:, order]})
    parity = meter.parity()
    assert parity is not None and parity.max_rel == 0.0
    assert {line.output for line in meter.table()} == {"scores", "labels", "boxes"}


def test_queries_of_a_softmax_detector_may_not_be_reordered() -> None:
    logits = RANDOM.normal(size=(1, 20, 5)).astype(np.float32)
    boxes = RANDOM.uniform(0.2, 0.4, size=(1, 20, 4)).astype(np.float32)
    meter = ParityMeter(tiny_graphs.detector_spec())
    meter.add({"logits": logits, "boxes": boxes}, {"logits": logits[:, ::-1], "boxes": boxes[:, ::-1]})
    parity = meter.parity()
    assert parity is not None and parity.max_rel is not None and parity.max_rel > 0.1


def test_detections_with_nan_are_findings_and_not_a_crash() -> None:
    reference = _detections()
    broken = _copy(reference)
    for entry in broken:
        entry["scores"][:] = np.nan
    meter = _compared(reference, broken)
    assert "the output `scores` holds NaN in all 3 images (first: 0.jpg)" in [
        finding.text for finding in meter.findings()
    ]


def test_a_class_beyond_the_labels_is_a_finding_and_not_a_crash() -> None:
    reference = _detections()
    candidate = _copy(reference)
    candidate[1]["labels"] += 1
    meter = _compared(reference, candidate)
    (finding,) = meter.findings()
    assert finding.fatal
    assert finding.text == (
        "the outputs cannot be read as detections: the model answered class 4, the spec names 4 labels (first: 1.jpg)"
    )


def test_iou_agrees_with_areas_counted_by_hand() -> None:
    a = np.array([[0, 0, 2, 2], [5, 5, 5, 9]], np.float32)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2]], np.float32)
    assert iou(a, b) == pytest.approx(np.array([[1 / 7, 1.0], [0.0, 0.0]]))
