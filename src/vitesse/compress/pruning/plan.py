"""Which units give way: always the chunk that loses least importance per operation saved, until few enough are left.

The operations of a layer are a product over the sizes of the groups it reads and writes, so that the count of a planned
network is exact: it is what `flops` finds on the module when it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How far below the target a cut may go, as a share of all operations, while a finer one is left.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Candidate:
    """A group that may give way.

    Args:
        scores: importance of each unit, ≥ 0.
        multiple: what is left is a multiple of it, at least one; a group of fewer units stays whole.
    """

    name: str
    scores: NDArray[np.float64]
    multiple: int

    @property
    def size(self) -> int:
        """Units before anything is cut."""
        return len(self.scores)


@dataclass(frozen=True)
class Term:
    """Operations proportional to the size of each of `groups`; one named twice counts as its square."""

    flops: int
    groups: tuple[str, ...]


class Plan:
    """How many units of each candidate are left, and what that costs."""

    def __init__(self, candidates: Sequence[Candidate], terms: Sequence[Term], total: int) -> None:
        self.candidates = {candidate.name: candidate for candidate in candidates}
        self.left = {candidate.name: candidate.size for candidate in candidates}
        self._terms = [term for term in terms if any(name in self.left for name in term.groups)]
        self._by_group = {name: [term for term in self._terms if name in term.groups] for name in self.left}
        self._fixed = total - sum(term.flops for term in self._terms)
        # Ascending: the last `left` entries stay. `_sums[name][n]`: importance of the n most important units.
        self._order = {one.name: np.argsort(one.scores, kind="stable") for one in candidates}
        self._sums = {
            one.name: np.concatenate([[0.0], np.cumsum(np.sort(one.scores)[::-1])]) for one in candidates
        }

    @property
    def flops(self) -> int:
        """Operations of the network as planned."""
        return self._count(self.left)

    @property
    def floor(self) -> int:
        """Operations when every group gives all it can."""
        return self._count({name: min(one.size, one.multiple) for name, one in self.candidates.items()})

    def kept(self, name: str) -> list[int]:
        """Return the units of a group that stay, in their order."""
        candidate = self.candidates[name]
        return sorted(self._order[name][candidate.size - self.left[name] :].tolist())

    def reduce_to(self, target: int) -> None:
        """Cut until at most `target` operations are left, or as few as can be, and give back what was too much."""
        cuts: list[tuple[str, int]] = []
        least = target - _TOLERANCE * self.flops
        while (now := self.flops) > target:
            able = {name: self._saved(name) for name in self.left if self._chunk(name)}
            if not able:
                return
            # A chunk that would leave far too little waits until nothing finer is there.
            fine = [name for name, saved in able.items() if now - saved >= least] or list(able)
            name = min(fine, key=self._price)
            cuts.append((name, self._chunk(name)))
            self.left[name] -= cuts[-1][1]
        settled: set[str] = set()
        for name, chunk in reversed(cuts):
            if name in settled:
                continue
            self.left[name] += chunk
            if self.flops > target:
                self.left[name] -= chunk
                settled.add(name)

    def _chunk(self, name: str) -> int:
        """Units that go next: down to the next multiple below; 0 where nothing can."""
        left, multiple = self.left[name], self.candidates[name].multiple
        return 0 if left <= multiple else left % multiple or multiple

    def _price(self, name: str) -> float:
        """Share of the group's remaining importance that the next chunk takes, per operation it saves.

        Relative to what remains, so that a group gives way the less willingly the more it has given.
        """
        left, chunk = self.left[name], self._chunk(name)
        before, after = self._sums[name][left], self._sums[name][left - chunk]
        lost = (before - after) / before if before > 0 else 0.0
        saved = self._saved(name)
        return lost / saved if saved else math.inf

    def _saved(self, name: str) -> float:
        """Operations that the next chunk of a group saves."""
        shrunk = 1 - self._chunk(name) / self.left[name]
        return sum(
            self._cost(term, self.left) * (1 - shrunk ** term.groups.count(name))
            for term in self._by_group[name]
        )

    def _count(self, left: Mapping[str, int]) -> int:
        return self._fixed + round(sum(self._cost(term, left) for term in self._terms))

    def _cost(self, term: Term, left: Mapping[str, int]) -> float:
        shares = (left[name] / self.candidates[name].size for name in term.groups if name in left)
        return term.flops * math.prod(shares)
