from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.compress.pruning.plan import Candidate, Plan, Term


def plan(*sizes: int, flops: int = 100, multiple: int = 8, fixed: int = 0) -> Plan:
    """Groups a, b, … of equal importance, each with one layer of `flops`."""
    named = list(zip("abcd", sizes, strict=False))
    candidates = [Candidate(name, np.ones(size), multiple) for name, size in named]
    return Plan(candidates, [Term(flops, (name,)) for name, _ in named], flops * len(named) + fixed)


def test_operations_are_a_product_over_the_groups_of_a_layer() -> None:
    candidates = [Candidate("a", np.ones(16), 8), Candidate("b", np.ones(32), 8)]
    found = Plan(candidates, [Term(512, ("a", "b")), Term(64, ("a", "a"))], 1000)
    found.left = {"a": 8, "b": 8}
    assert found.flops == 1000 - 512 - 64 + 512 // 8 + 64 // 4
    assert found.floor == found.flops


def test_the_most_expensive_group_gives_way_until_groups_are_even() -> None:
    candidates = [Candidate("a", np.ones(64), 8), Candidate("b", np.ones(64), 8)]
    found = Plan(candidates, [Term(3000, ("a",)), Term(1000, ("b",))], 4000)
    found.reduce_to(2000)
    assert found.flops <= 2000 and found.left["a"] <= 32 and found.left["b"] >= 48


def test_the_target_is_never_passed_and_nothing_that_fits_stays_away() -> None:
    found = plan(64, 64, flops=640)
    found.reduce_to(1000)
    assert 920 < found.flops <= 1000


def test_least_important_units_go_and_order_is_kept() -> None:
    scores = np.array([5.0, 1, 4, 0, 3, 2, 9, 8])
    found = Plan([Candidate("a", scores, 2)], [Term(80, ("a",))], 80)
    found.reduce_to(40)
    assert found.kept("a") == [0, 2, 6, 7]


def test_an_odd_width_first_goes_down_to_a_multiple() -> None:
    found = plan(20, flops=200)
    found.reduce_to(199)
    assert found.left == {"a": 16}


def test_a_target_out_of_reach_leaves_one_multiple_each() -> None:
    found = plan(64, 5, fixed=50)
    found.reduce_to(1)
    assert found.left == {"a": 8, "b": 5} and found.flops == found.floor
