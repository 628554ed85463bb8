"""The search for facilities, against trying every choice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from vitesse.data import bucket_search
from vitesse.data.bucket_search import choose


def random_costs(seed: int, demands: int, facilities: int) -> np.ndarray:
    """Whole costs, some of them impossible, and one facility that serves all."""
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 60, (demands, facilities)).astype(float)
    cost[rng.random(cost.shape) < 0.4] = np.inf
    cost[:, 0] = 80
    return cost


def least_of_all(cost: np.ndarray, count: int) -> float:
    return min(
        cost[:, list(some)].min(axis=1).sum()
        for size in range(1, count + 1)
        for some in combinations(range(cost.shape[1]), size)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(12))
def test_no_choice_costs_less_than_the_one_found(seed: int, count: int) -> None:
    cost = random_costs(seed, 10 + seed, 12)
    found = choose(cost, count)
    assert found.proven
    assert found.cost == least_of_all(cost, count)
    assert cost[:, list(found.open)].min(axis=1).sum() == found.cost
    assert len(found.open) <= count


def test_exchanging_alone_would_not_find_them_all() -> None:
    """So the branching is needed, and these tests would see it break."""
    missed = 0
    for seed in range(60):
        cost = random_costs(seed, 16, 14)
        first = int(np.argmin(np.where(np.isfinite(cost).all(axis=0), cost.sum(axis=0), np.inf)))
        start = bucket_search._greedy(cost, first, 4)
        exchanged = bucket_search._exchanged(cost, start)
        wanted = least_of_all(cost, 4)
        missed += cost[:, list(exchanged)].min(axis=1).sum() > wanted
        assert choose(cost, 4).cost == wanted
    assert missed > 0


def test_a_search_that_is_cut_off_says_so_and_still_serves_everybody() -> None:
    cut = [choose(random_costs(seed, 60, 40), 5, nodes=1) for seed in range(5)]
    assert not all(one.proven for one in cut)
    assert all(np.isfinite(one.cost) for one in cut)


def test_more_facilities_than_there_are_is_all_of_them() -> None:
    cost = np.array([[3.0, 1.0], [3.0, np.inf]])
    assert choose(cost, 9).cost == 4.0
