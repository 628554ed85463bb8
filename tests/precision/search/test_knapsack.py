"""The best set within a bound, against trying all sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitesse.precision.search.knapsack import best_within


@pytest.mark.parametrize("seed", range(20))
def test_no_set_within_the_bound_gains_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that rounding costs to steps of the capacity loses nothing.
    cost = {f"b{at}": float(rng.integers(0, 50)) for at in range(10)}
    gain = {name: float(rng.integers(-3, 20)) for name in cost}
    capacity = 100.0
    best = max(
        sum(gain[name] for name in names)
        for count in range(11)
        for names in itertools.combinations(cost, count)
        if sum(cost[name] for name in names) <= capacity
    )
    found = best_within(cost, gain, capacity)
    assert sum(cost[name] for name in found) <= capacity
    assert sum(gain[name] for name in found) == best


def test_without_room_only_what_is_free_is_taken() -> None:
    assert best_within({"a": 0.0, "b": 0.1}, {"a": 1.0, "b": 5.0}, 0.0) == {"a"}


def test_what_gains_nothing_is_left_out_even_if_free() -> None:
    assert best_within({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": -1.0}, 1.0) == frozenset()
