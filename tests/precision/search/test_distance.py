"""The distance of answers, against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitesse.data.results import Detections
from vitesse.precision.search.distance import Distance


def _found(*detections: tuple[float, int, tuple[float, float, float, float]]) -> Detections:
    """Detections from (score, class, box)."""
    return Detections(
        np.array([box for _, _, box in detections], np.float32).reshape(-1, 4),
        np.array([score for score, _, _ in detections], np.float32),
        np.array([label for _, label, _ in detections], np.int64),
        tuple(str(label) for _, label, _ in detections),
    )


LEFT, RIGHT = (0, 0, 10, 10), (50, 0, 60, 10)
BOTH = _found((0.8, 1, LEFT), (0.6, 2, RIGHT))


def _distance(reference: Detections, candidate: Detections) -> float:
    distance = Distance()
    distance.add_detections(reference, candidate)
    return distance.value()


def test_the_same_answers_have_no_distance_in_any_order() -> None:
    assert _distance(BOTH, BOTH) == 0.0
    assert _distance(BOTH, _found((0.6, 2, RIGHT), (0.8, 1, LEFT))) == 0.0


def test_a_lost_detection_counts_by_its_score() -> None:
    # Lost: 0.6² of 0.8² + 0.6² = 1; nothing invented. √(½ · 0.36)
    assert _distance(BOTH, _found((0.8, 1, LEFT))) == pytest.approx(math.sqrt(0.18))


def test_an_invented_detection_counts_as_much() -> None:
    assert _distance(_found((0.8, 1, LEFT)), BOTH) == pytest.approx(math.sqrt(0.18))


def test_another_class_in_the_same_place_is_lost_and_invented() -> None:
    assert _distance(_found((0.8, 1, LEFT)), _found((0.8, 2, LEFT))) == pytest.approx(1.0)


def test_a_moved_box_keeps_its_share_of_overlap() -> None:
    # Moved by half its width: IoU = 50 / 150 = 1/3, so that 2/3 is missing on either side.
    moved = _found((0.9, 1, (5, 0, 15, 10)))
    assert _distance(_found((0.9, 1, LEFT)), moved) == pytest.approx(2 / 3, rel=1e-6)


def test_a_detector_that_finds_nothing_has_lost_half_of_both_directions() -> None:
    assert _distance(BOTH, _found()) == pytest.approx(math.sqrt(0.5))


def test_logits_are_compared_without_what_softmax_does_not_see() -> None:
    distance = Distance()
    distance.add_logits(np.array([[1.0, 3.0]]), np.array([[6.0, 8.0]]))
    assert distance.value() == 0.0
    # Centred: (-1, 1) and (-2, 2): difference (-1, 1), as large as the reference itself.
    distance.add_logits(np.array([[1.0, 3.0]]), np.array([[0.0, 4.0]]))
    assert distance.value() == pytest.approx(math.sqrt(2 / 4))


def test_answers_that_are_not_finite_have_nothing_in_common() -> None:
    distance = Distance()
    distance.add_logits(np.array([[1.0, 3.0]]), np.array([[np.nan, 3.0]]))
    assert distance.value() == 1.0
