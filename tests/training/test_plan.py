"""A time budget becomes steps and scores that fit in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vitesse.training.plan import Plan, measured_step, plan_of_seconds, plan_of_steps


def test_a_number_of_steps_is_scored_by_shares_of_it() -> None:
    assert plan_of_steps(1000, 0.1) == Plan(1000, 100)
    assert plan_of_steps(3, 0.1) == Plan(3, 1)


@pytest.mark.parametrize(
    ("seconds", "step", "score", "plan"),
    [
        (100, 0.5, 0, Plan(200, 20)),
        (100, 0.5, 2, Plan(160, 16)),  # ten scores take 20 seconds
        (100, 0.5, 20, Plan(120, 60)),  # ten would take 200: two fit in the half
        (100, 0.5, 90, Plan(20, 20)),  # one is needed
        (100, 0.5, 200, Plan(1, 1)),
        (0.1, 0.5, 0, Plan(1, 1)),
    ],
)
def test_steps_and_scores_fit_in_the_time(seconds: float, step: float, score: float, plan: Plan) -> None:
    assert plan_of_seconds(seconds, step, score, 0.1) == plan


def measured(durations: list[float], budget: float) -> tuple[float, int]:
    now, left, taken = [0.0], iter(durations), []

    def step() -> None:
        now[0] += next(left)
        taken.append(1)

    return measured_step(step, budget, lambda: now[0], lambda enough: enough), len(taken)


def test_the_first_step_and_outliers_do_not_count() -> None:
    assert measured([30.0, 1, 1, 1, 9, 1, 1, 1, 1, 1], 1e6) == (1.0, 10)


def test_slow_steps_are_measured_for_a_twentieth_of_the_time() -> None:
    assert measured([2.0] * 10, 100) == (2.0, 3)
    assert measured([50.0] * 10, 100) == (50.0, 1)


def test_a_step_that_takes_no_time_does_not_promise_endlessly_many() -> None:
    assert measured([0.0] * 10, 100)[0] > 0


def test_all_processes_stop_measuring_when_the_first_does() -> None:
    answers: Iterator[bool] = iter([False, True])
    taken: list[int] = []
    measured_step(lambda: taken.append(1), 1e9, lambda: 0.0, lambda enough: next(answers))
    assert len(taken) == 2
