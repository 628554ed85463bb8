"""What guessing gets, and what lies above it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vitesse.data.split import Sample, Split
from vitesse.verify.chance import above_chance, chance_of


def _labelled(*labels: int | None) -> Split:
    return Split(tuple(Sample(Path(f"{number}.png"), number, label) for number, label in enumerate(labels)))


def test_chance_is_the_share_of_the_most_frequent_class_among_the_very_labels() -> None:
    assert chance_of("top1", _labelled(0, 1, 2, 3)) == 25.0
    assert chance_of("top1", _labelled(4, 4, 4, 1)) == 75.0
    assert chance_of("top1", _labelled(7)) == 100.0


@pytest.mark.parametrize("metric", ["coco_ap", "agreement"])
def test_boxes_and_agreement_are_not_guessed(metric: str) -> None:
    assert chance_of(metric, _labelled(None, None)) == 0.0


@pytest.mark.parametrize(
    ("score", "chance", "above"),
    [
        *((0.0, 0.0, False), (1.0, 0.0, False), (1.1, 0.0, True), (math.nan, 0.0, False)),
        *((10.0, 10.0, False), (12.0, 10.0, False), (12.1, 10.0, True), (2.0, 10.0, False)),
        *((0.9, 0.1, False), (1.1, 0.1, True), (60.0, 50.0, False), (60.1, 50.0, True)),
        *((92.0, 90.0, False), (92.1, 90.0, True), (100.0, 100.0, False)),
    ],
)
def test_a_score_is_above_chance_by_a_fifth_of_it_or_of_what_it_leaves_wrong(
    score: float, chance: float, above: bool
) -> None:
    assert above_chance(score, chance) is above


def test_a_smaller_share_may_count_as_accident() -> None:
    assert above_chance(0.6, 0.0, 0.5)
    assert not above_chance(11.0, 10.0, 0.0)
