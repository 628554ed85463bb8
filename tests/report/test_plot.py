import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from report.sample import CLEAN, FUSE, INT8, INT8_BACKBONE, OPENVINO, SOURCE, UNKNOWN, sample_ledger
from vitesse.ledger import Accuracy, Latency, Ledger
from vitesse.report.plot import accuracy_plot, left_out, points_of
from vitesse.report.plot_layout import Box, accuracy_range, axis, latency_range, place_labels

FRAME = Box(58, 30, 1026, 392)


def _drawn(ledger: Ledger, width: int = 1040, height: int = 440) -> ET.Element:
    return ET.fromstring(accuracy_plot(ledger, width=width, height=height))


def _texts(drawing: ET.Element, kind: str) -> list[str]:
    return [str(one.text) for one in drawing.iter("text") if kind in one.get("class", "").split()]


def _kinds(drawing: ET.Element) -> list[str]:
    return sorted(one.get("class", "").removeprefix("p-mark p-") for one in drawing.iter("g"))


def test_every_measured_step_is_a_labelled_point_and_the_others_are_named():
    drawing = _drawn(sample_ledger())
    labels = _texts(drawing, "p-label")
    assert sorted(labels) == [
        "1 source",
        "2 clean",
        "3 fuse",
        "4 build:onnxruntime",
        "5 int8 (AP 0.7097)",
        "6 int8-backbone",
        "7 build:openvino",
    ]
    assert left_out(sample_ledger()) == ("8 build:tensorrt", "9 fp16")


def test_points_are_marked_by_their_verdict():
    assert _kinds(_drawn(sample_ledger())) == [
        "chosen",
        "pass",
        "pass",
        "pass",
        "rejected",
        "rejected",
        "source",
    ]


def test_a_chosen_row_that_did_not_pass_is_not_drawn_as_a_good_one():
    ledger = Ledger("m.onnx", "cpu", (SOURCE, INT8), chosen=1)
    assert [point.kind for point in points_of(ledger)] == ["source", "rejected"]


def test_axes_have_titles_units_and_ticks_and_both_budgets_have_words():
    drawing = _drawn(sample_ledger())
    assert _texts(drawing, "p-title") == [
        "p50 latency, ms (the original's over the gain) → slower",
        "AP, 0 to 1 ↑ better",
    ]
    assert _texts(drawing, "p-note") == ["largest drop allowed, 0.5 points", "budget 16 ms"]
    assert len(_texts(drawing, "p-tick")) >= 6


def test_without_a_latency_budget_there_is_one_budget_line():
    drawing = _drawn(replace(sample_ledger(), latency_budget=None))
    assert sum(line.get("class") == "p-budget" for line in drawing.iter("line")) == 1


def test_without_an_accuracy_of_the_source_there_is_no_line_for_the_drop():
    ledger = Ledger("m.onnx", "cpu", (replace(SOURCE, accuracy=None), FUSE, INT8_BACKBONE), chosen=2)
    assert not [line for line in _drawn(ledger).iter("line") if line.get("class") == "p-budget"]


def test_the_plot_is_described_in_words():
    drawing = _drawn(sample_ledger())
    assert drawing.get("role") == "img"
    assert "6 int8-backbone: 11.67 ms, AP 0.8241" in drawing.get("aria-label", "")


def test_a_hostile_stage_name_is_escaped():
    row = replace(FUSE, stage='"><script>x')
    drawing = accuracy_plot(Ledger("m.onnx", "cpu", (SOURCE, row)), width=1040, height=440)
    assert "<script" not in drawing
    assert '2 "><script>x' in _texts(ET.fromstring(drawing), "p-label")


def test_fewer_than_two_points_make_no_plot():
    assert accuracy_plot(Ledger("m.onnx", "cpu", (SOURCE, UNKNOWN)), width=1040, height=440) == ""


def test_a_point_far_below_stands_on_the_border_and_does_not_squash_the_others():
    low, high = accuracy_range([0.8259, 0.8241, 0.2], 0.8209)
    assert 0.81 < low < 0.8209
    assert 0.8259 < high < 0.83


def test_a_point_far_to_the_right_stands_on_the_border_with_its_value():
    slow = replace(OPENVINO, gain=None, latency_ms=Latency(500.0, 510.0, 520.0))
    labels = _texts(_drawn(Ledger("m.onnx", "cpu", (SOURCE, FUSE, slow))), "p-label")
    assert "3 build:openvino (500.0 ms)" in labels


def test_a_budget_far_away_does_not_squash_the_points():
    assert latency_range([18.0, 11.0], 500.0) == latency_range([18.0, 11.0], None)
    assert latency_range([18.0, 11.0], 16.0)[0] < 11.0
    assert latency_range([18.0, 11.0], 9.0)[0] < 9.0


def test_identical_points_and_a_perfect_score_still_make_axes():
    rows = tuple(
        replace(row, accuracy=Accuracy("top1", 1.0, 0.0, 10), latency_ms=Latency(5, 5, 5))
        for row in (SOURCE, CLEAN)
    )
    drawing = _drawn(replace(sample_ledger(), rows=rows, chosen=1, max_drop=0.0))
    ticks = [float(text) for text in _texts(drawing, "p-tick")]
    assert len(ticks) > 4


@pytest.mark.parametrize(("low", "high"), [(10.3, 19.7), (0.8191, 0.8282), (0.0, 1.0), (3.0, 3000.0)])
def test_ticks_are_round_inside_the_axis_and_written_apart(low, high):
    scale = axis(low, high, (0, 100), most_ticks=6)
    texts = [scale.tick_text(tick) for tick in scale.ticks]
    assert 2 <= len(texts) <= 7
    assert len(set(texts)) == len(texts)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in scale.ticks)
    assert [float(text) for text in texts] == pytest.approx(list(scale.ticks))


def test_a_value_outside_the_axis_lands_on_its_border():
    scale = axis(10.0, 20.0, (0, 100), most_ticks=5)
    assert (scale.at(5), scale.at(15), scale.at(90)) == (0, 50, 100)
    assert not scale.shows(5)


def _overlaps(boxes: tuple[Box, ...]) -> list[tuple[Box, Box]]:
    return [(one, other) for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]


@pytest.mark.parametrize(
    "anchors",
    [
        [(500.0, 200.0)] * 9,
        [(60.0 + index, 31.0) for index in range(9)],
        [(1024.0, 390.0 - 3 * index) for index in range(9)],
        [(100.0 * index + 80, 200.0 + (index % 2)) for index in range(9)],
    ],
)
def test_labels_never_overlap_and_stay_inside_even_when_points_coincide(anchors):
    texts = [f"{index} some-stage-name" for index in range(9)]
    boxes = place_labels(anchors, texts, FRAME, [])
    assert len(boxes) == 9
    assert _overlaps(boxes) == []
    assert all(box.inside(FRAME) for box in boxes)


def test_labels_avoid_what_is_taken():
    taken = Box(508, 150, 700, 250)
    (box,) = place_labels([(500.0, 200.0)], ["1 source"], FRAME, [taken])
    assert not box.overlaps(taken)


def test_overlap_is_seen_when_there_is_no_room():
    small = Box(0, 0, 60, 20)
    assert _overlaps(place_labels([(30.0, 10.0)] * 3, ["1 source"] * 3, small, []))


def test_boxes_that_only_touch_do_not_overlap():
    assert not Box(0, 0, 10, 10).overlaps(Box(10, 0, 20, 10))
    assert Box(0, 0, 10, 10).overlaps(Box(9, 9, 20, 20))


def test_a_drifting_machine_does_not_move_a_point() -> None:
    drifted = replace(FUSE, gain=2.0, latency_ms=Latency(90.0, 91.0, 92.0))
    source = replace(SOURCE, latency_ms=Latency(10.0, 11.0, 12.0))
    assert [point.latency_ms for point in points_of(Ledger("m.onnx", "cpu", (source, drifted)))] == [
        10.0,
        5.0,
    ]
