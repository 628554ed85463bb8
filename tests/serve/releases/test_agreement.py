"""Agreement of answers and drift of scores: what is equal, what is nearly so, what is wrong."""

import numpy as np
import pytest

from vitesse.data.results import Classification, Detections
from vitesse.serve.releases.agreement import agreement
from vitesse.serve.releases.drift import excess, hellinger, histogram


def classes(label: int, score: float) -> Classification:
    return Classification(np.array([label, label + 1]), np.array([score, 1 - score], np.float32), ("a", "b"))


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    found = np.array(rows, np.float32).reshape(-1, 6)
    order = np.argsort(-found[:, 4], kind="stable")
    found = found[order]
    return Detections(found[:, :4], found[:, 4], found[:, 5].astype(np.int64), ("x",) * len(found))


CAT, DOG = (0, 0, 10, 10, 0.9, 1), (50, 50, 90, 90, 0.8, 2)


def test_equal_answers_agree_wholly() -> None:
    assert agreement([classes(3, 0.8)], [classes(3, 0.8)]) == 1.0
    assert agreement([boxes(CAT, DOG)], [boxes(DOG, CAT)]) == pytest.approx(1.0)
    assert agreement([boxes()], [boxes()]) == 1.0


def test_another_first_class_agrees_with_nothing_and_another_score_costs_its_difference() -> None:
    assert agreement([classes(3, 0.8)], [classes(4, 0.8)]) == 0.0
    assert agreement([classes(3, 0.8)], [classes(3, 0.7)]) == pytest.approx(0.9, abs=1e-6)


def test_nan_agrees_with_nothing_not_even_with_itself() -> None:
    empty = Classification(np.zeros(0, np.int64), np.zeros(0, np.float32), ())
    assert agreement([empty], [empty]) == 0.0


def test_a_lost_an_invented_and_a_renamed_object_all_cost() -> None:
    assert agreement([boxes(CAT)], [boxes(CAT, DOG)]) == pytest.approx(2 / 3)
    assert agreement([boxes(CAT, DOG)], [boxes(CAT)]) == pytest.approx(2 / 3)
    assert agreement([boxes((*CAT[:5], 7))], [boxes(CAT)]) == 0.0


def test_a_moved_box_costs_what_it_overlaps_less() -> None:
    moved = boxes((1, 0, 11, 10, 0.9, 1))
    assert agreement([moved], [boxes(CAT)]) == pytest.approx(9 / 11)


def test_a_score_that_crosses_one_half_costs_little() -> None:
    above, below = boxes((0, 0, 10, 10, 0.51, 1)), boxes((0, 0, 10, 10, 0.49, 1))
    assert agreement([above], [below]) == pytest.approx(0.98, abs=1e-5)


def test_two_boxes_cannot_share_one_counterpart() -> None:
    assert agreement([boxes(CAT, CAT)], [boxes(CAT)]) == pytest.approx(2 / 3)


def test_results_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="2 results, expected 1"):
        agreement([boxes(), boxes()], [boxes()])
    with pytest.raises(ValueError, match="Detections cannot agree with Classification"):
        agreement([boxes()], [classes(1, 0.5)])


def test_hellinger_is_0_for_equal_and_1_for_disjoint_histograms() -> None:
    low, high = histogram([0.1] * 5), histogram([0.9] * 50)
    assert hellinger(low, 7 * low) == pytest.approx(0.0, abs=1e-7)
    assert hellinger(low, high) == 1.0
    assert hellinger(histogram([0.1, 0.9]), low) == pytest.approx(np.sqrt(1 - np.sqrt(0.5)))
    assert hellinger(low, histogram([])) == 1.0


def test_scores_outside_and_nan_are_counted_at_the_ends_and_nowhere() -> None:
    assert histogram([-1.0, 2.0, float("nan")]).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_chance_between_small_samples_is_taken_off() -> None:
    random = np.random.default_rng(1)
    drawn = [(random.beta(5, 2, 50), random.beta(5, 2, 50)) for _ in range(200)]
    assert max(excess(*pair) for pair in drawn) < 0.2
    assert excess(random.beta(5, 2, 50), random.beta(2, 5, 50)) > 0.3
