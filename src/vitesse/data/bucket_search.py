"""The best k of m facilities, proven: the search behind `choose_buckets`.

Every demand is served by the cheapest open facility. This is the p-median problem. Lower bounds come from its
Lagrangian relaxation (Cornuéjols, Fisher and Nemhauser 1977: the demand "served exactly once" is priced, what is left
is choosing the k facilities of most negative reduced cost), prices from subgradient steps, upper bounds from exchanging
one open facility for a closed one as long as it helps (Teitz and Bart 1968). What the bounds leave open is branched on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS_FIRST, _STEPS_LATER = 300, 60
# Steps without a better bound before the step length is halved, and where that ends.
_PATIENCE, _SMALLEST_SCALE = 15, 1e-4


@dataclass(frozen=True)
class Choice:
    """What `choose` found.

    open: indices of the facilities, ascending. cost: what serving all demands from them costs. proven: no other choice
    costs less; False where the search stopped at its limit.
    """

    open: tuple[int, ...]
    cost: float
    proven: bool


def choose(cost: Floats, count: int, *, nodes: int = 150) -> Choice:
    """Return at most `count` facilities that serve all demands at the least cost.

    Args:
        cost: (demands, facilities), whole numbers; inf where a facility cannot serve a demand. Some one facility
            must be able to serve all.
        count: 1 or more.
        nodes: how many subproblems are looked at before the best so far is returned unproven.
    """
    search = _Search(cost, min(count, cost.shape[1]), nodes)
    first = int(np.argmin(np.where(np.isfinite(cost).all(axis=0), cost.sum(axis=0), np.inf)))
    search.better(_exchanged(cost, _greedy(cost, first, search.count)))
    lowest = cost.min(axis=1)
    search.branch(_Node((), np.arange(cost.shape[1]), lowest), _STEPS_FIRST)
    return Choice(tuple(sorted(search.best)), search.least, search.nodes_left >= 0)


@dataclass(frozen=True)
class _Node:
    """A subproblem: facilities that are open, those still free to open, and the prices to begin with."""

    opened: tuple[int, ...]
    free: NDArray[np.intp]
    prices: Floats


@dataclass(frozen=True)
class _Relaxed:
    """A lower bound; reduced costs of the free facilities; which of these it opens; demands served too seldom (> 0)."""

    bound: float
    reduced: Floats
    chosen: NDArray[np.intp]
    slope: Floats


@dataclass
class _Search:
    cost: Floats
    count: int
    nodes_left: int
    best: tuple[int, ...] = ()
    least: float = math.inf

    def better(self, chosen: tuple[int, ...]) -> None:
        """Keep a choice that costs less than the best so far."""
        found = _total(self.cost, chosen)
        if found < self.least:
            self.best, self.least = chosen, found

    def branch(self, node: _Node, steps: int) -> None:
        """Look at a subproblem and, where its bound leaves it open, at its two halves."""
        self.nodes_left -= 1
        if self.nodes_left < 0:
            return
        node, reduced = self._bounded(node, steps)
        left = self.count - len(node.opened)
        if left == 0 or len(node.free) <= left:
            if node.opened or len(node.free):
                self.better((*node.opened, *(int(one) for one in node.free[:left])))
            return
        at = int(np.argmin(reduced))
        rest = np.delete(node.free, at)
        self.branch(_Node((*node.opened, int(node.free[at])), rest, node.prices), _STEPS_LATER)
        self.branch(_Node(node.opened, rest, node.prices), _STEPS_LATER)

    def _bounded(self, node: _Node, steps: int) -> tuple[_Node, Floats]:
        """Raise the lower bound by subgradient steps and drop what cannot be part of a cheaper choice.

        Returns:
            The node with fewer free facilities (none where the bound already excludes it), and their reduced costs.
        """
        top, scale, idle, prices, left = -math.inf, 1.0, 0, node.prices, self.count - len(node.opened)
        for _ in range(steps):
            relaxed = self._relaxed(node, prices)
            self.better((*node.opened, *(int(one) for one in node.free[relaxed.chosen])))
            if relaxed.bound > top + 1e-9:
                top, idle, node = relaxed.bound, 0, replace(node, prices=prices)
            else:
                idle += 1
            if _ends(top, self.least):
                return replace(node, free=node.free[:0]), relaxed.reduced[:0]
            if len(node.free) > left > 0:
                # with a facility forced into the choice, the worst of the chosen goes out
                worst = relaxed.reduced[relaxed.chosen[-1]]
                alive = ~_ends(relaxed.bound + relaxed.reduced - worst, self.least)
                alive[relaxed.chosen] = True
                node = replace(node, free=node.free[alive])
            norm = float((relaxed.slope**2).sum())
            if norm == 0 or scale < _SMALLEST_SCALE:
                break
            if idle >= _PATIENCE:
                scale, idle, prices = scale / 2, 0, node.prices
            prices = prices + scale * (self.least - relaxed.bound) / norm * relaxed.slope
        return node, self._relaxed(node, node.prices).reduced

    def _relaxed(self, node: _Node, prices: Floats) -> _Relaxed:
        """Solve the relaxation: each demand pays its price, each facility earns where it serves for less."""
        fixed = np.minimum(0.0, self.cost[:, list(node.opened)] - prices[:, None])
        earned = np.minimum(0.0, self.cost[:, node.free] - prices[:, None])
        reduced = earned.sum(axis=0)
        chosen = np.argsort(reduced, kind="stable")[: self.count - len(node.opened)]
        bound = float(prices.sum() + fixed.sum() + reduced[chosen].sum())
        slope = 1.0 - (fixed < 0).sum(axis=1) - (earned[:, chosen] < 0).sum(axis=1)
        return _Relaxed(bound, reduced, chosen, slope)


def _ends(bound: Any, least: float) -> Any:
    """Whether nothing below a bound (or each of several) is cheaper: costs are whole, so better is better by one."""
    return bound > least - 1 + 1e-6


def _total(cost: Floats, chosen: tuple[int, ...]) -> float:
    return float(cost[:, list(chosen)].min(axis=1).sum()) if chosen else math.inf


def _greedy(cost: Floats, first: int, count: int) -> tuple[int, ...]:
    """Open the facility that saves most, one after the other, beginning with one that serves all."""
    chosen, served = [first], cost[:, first]
    while len(chosen) < count:
        totals = np.minimum(cost, served[:, None]).sum(axis=0)
        at = int(np.argmin(totals))
        if totals[at] >= served.sum():
            break
        chosen.append(at)
        served = np.minimum(served, cost[:, at])
    return tuple(chosen)


def _exchanged(cost: Floats, chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Exchange one open facility for a closed one as long as that costs less."""
    least = _total(cost, chosen)
    improved = True
    while improved:
        improved = False
        for at in range(len(chosen)):
            others = list(chosen[:at] + chosen[at + 1 :])
            served = cost[:, others].min(axis=1) if others else np.full(len(cost), np.inf)
            totals = np.minimum(cost, served[:, None]).sum(axis=0)
            best = int(np.argmin(totals))
            if totals[best] < least:
                chosen = (*chosen[:at], best, *chosen[at + 1 :])
                least, improved = float(totals[best]), True
    return chosen
