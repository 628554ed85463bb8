"""Assignments solved in several processes are those that one process finds."""

import itertools

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")

from vitesse.compress.distillation import assignment


def problems(count=40, rows=5, columns=4):
    random = np.random.default_rng(3)
    costs = random.standard_normal((count, rows, columns)).astype(np.float32)
    return costs, [int(end) for end in random.integers(0, columns + 1, count)]


def test_each_problem_gets_its_cheapest_pairs():
    costs, ends = problems(12)
    sizes, rows, columns = assignment.solve_here(costs, ends)
    assert sizes.tolist() == ends  # more rows than columns: every column that counts is given away
    at = 0
    for matrix, end in zip(costs, ends, strict=True):
        found = matrix[rows[at : at + end], columns[at : at + end]].sum()
        every = (
            sum(matrix[row, column] for column, row in enumerate(chosen))
            for chosen in itertools.permutations(range(len(matrix)), end)
        )
        assert found == pytest.approx(min(every), abs=1e-5)
        assert list(rows[at : at + end]) == sorted(rows[at : at + end])
        at += end


@pytest.mark.parametrize("count", [40, 2, 0])
def test_processes_find_the_same_as_one(count):
    costs, ends = problems(count)
    alone = assignment.solve_here(costs, ends)
    for shared in (assignment.solve_on(3, costs, ends), assignment.solve_on(3, costs, ends)):
        for one, other in zip(alone, shared, strict=True):
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()


def test_only_many_problems_on_many_cores_are_shared(monkeypatch):
    asked = []
    monkeypatch.setattr(assignment, "solve_on", lambda processes, *_: asked.append(processes))
    costs, ends = problems()
    monkeypatch.setattr(assignment, "usable_cores", lambda: 16)
    assignment.solve(costs, ends)
    assert asked == []
    monkeypatch.setattr(assignment, "_MANY", costs.size)
    assignment.solve(costs, ends)
    monkeypatch.setattr(assignment, "usable_cores", lambda: 4)
    assignment.solve(costs, ends)
    assert asked == [8, 2]
