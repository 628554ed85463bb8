"""Assignments, against every permutation; costs, against numpy."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")
from vitesse.compress.distillation.matching import NotFinite, assign, begin, truth_costs  # noqa: E402


def cheapest(matrix: NDArray[np.float32]) -> float:
    """The least sum over all ways to give every column a row of its own, or every row a column."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    ways = permutations(range(small.shape[1]), small.shape[0])
    return min(float(small[range(small.shape[0]), list(way)].sum()) for way in ways)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (5, 3), (3, 5), (4, 1)])
def test_no_other_assignment_is_cheaper(rows: int, columns: int) -> None:
    costs = np.random.default_rng(rows + columns).normal(size=(2, 3, rows, columns)).astype(np.float32)
    layer, image, row, column = assign(costs, [columns] * 3)
    for one in range(2):
        for other in range(3):
            here = (layer == one) & (image == other)
            assert len(set(row[here])) == len(set(column[here])) == here.sum() == min(rows, columns)
            total = costs[one, other, row[here], column[here]].sum()
            assert total == pytest.approx(cheapest(costs[one, other]), abs=1e-5)


def test_padding_is_given_to_nobody_whatever_it_holds() -> None:
    costs = np.zeros((1, 3, 4, 3), np.float32)
    costs[0, 0, :, 1:] = np.nan
    costs[0, 1] = -np.inf
    _, image, _, column = assign(costs, [1, 0, 3])
    assert [sorted(column[image == index]) for index in range(3)] == [[0], [], [0, 1, 2]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_cost_that_is_no_number_is_refused_and_placed(value: float) -> None:
    costs = np.zeros((2, 2, 3, 2), np.float32)
    costs[1, 0, 2, 1] = value
    with pytest.raises(NotFinite, match="layer 1, image 0 is NaN or infinite"):
        assign(costs, [2, 2])


def test_no_object_anywhere_is_no_pair() -> None:
    assert assign(np.zeros((2, 2, 3, 0), np.float32), [0, 0]).shape == (4, 0)


def test_pairs_come_back_as_indices_on_the_device_of_the_costs() -> None:
    pairs = begin(torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]], requires_grad=True), [2]).pairs()
    assert pairs.row.tolist() == [0, 1]
    assert pairs.column.tolist() == [1, 0]
    assert pairs.layer.dtype == torch.int64


def test_costs_are_those_of_the_paper() -> None:
    logits = torch.tensor([[[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.25, 0.5, 0.5, 1.0]]]])
    labels, places = torch.tensor([[1, 0]]), torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.75, 0.5, 0.5, 1.0]]])
    costs = truth_costs(logits, boxes, labels, places)[0, 0].numpy()
    exact = logits[0, 0].numpy().astype(np.float64)
    likely = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    l1 = np.abs(boxes[0, 0].numpy()[:, None].astype(np.float64) - places[0].numpy()[None]).sum(2)
    assert costs[0, 0] == pytest.approx(-likely[0, 1] + 5 * l1[0, 0] - 2 * 0.25, abs=1e-6)
    assert costs[1, 1] == pytest.approx(-likely[1, 0] + 5 * l1[1, 1] - 2 * 0.0, abs=1e-6)
