"""What the task's metric loses when units are masked: measured, not estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from vitesse.compress.importance.masking import masked
from vitesse.compress.importance.scores import Scores
from vitesse.compress.importance.units import Group, Kind, groups
from vitesse.errors import UsageError
from vitesse.progress import Progress, Silent
from vitesse.sources.trainable import Trainable

SHARES = (0.125, 0.25, 0.5, 0.75)
# Kinds with few units, each of which costs much: every one is masked alone.
ALONE = (Kind.HEADS, Kind.LAYERS, Kind.QUERIES)
# Points that a unit may cost alone to count as one that can go.
CHEAP = 0.1


@dataclass(frozen=True)
class Curve:
    """What a group loses: `drops[i]` points when the share `shares[i]` (0..1) of its units is masked, least important
    first; `masked[i]` are how many."""

    shares: tuple[float, ...]
    masked: tuple[int, ...]
    drops: tuple[float, ...]

    def drop_at(self, share: float) -> float:
        """Return the drop in points at the largest measured share up to `share`; 0 where none is."""
        return max(
            ((one, drop) for one, drop in zip(self.shares, self.drops, strict=True) if one <= share + 1e-9),
            default=(0.0, 0.0),
        )[1]


@dataclass(frozen=True)
class Together:
    """Units of one kind that each cost `CHEAP` points or less when masked alone, and what all of them cost at once."""

    kind: Kind
    units: tuple[tuple[str, int], ...]  # (group, number), the cheapest first
    drop: float


@dataclass(frozen=True)
class Sensitivity:
    """How far the metric falls, in points; below 0 where the network is better without.

    Args:
        base: the metric of the whole network, points of 0..100.
        curves: group name → its curve.
        alone: group name → drop per unit, each masked alone, (size,).
        together: per kind that has any, the units that cost next to nothing alone.
        agreement: per kind, Spearman's rank correlation (−1..1) between the importance of all its units and what
            they cost alone; none where either is the same for all.
    """

    base: float
    curves: Mapping[str, Curve]
    alone: Mapping[str, NDArray[np.float64]]
    together: tuple[Together, ...]
    agreement: Mapping[Kind, float]


def sensitivity(
    trainable: Trainable,
    score: Callable[[nn.Module], float],
    importance: Scores,
    *,
    shares: Sequence[float] = SHARES,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure the metric with shares of each group masked, and with each head, layer and query masked alone.

    Args:
        score: the metric in points, as `scoring.scorer` makes it; called once for the whole network and once for
            every mask.
        importance: group name → (size,): the least important units are masked first. Groups that it lacks are left
            out.
        shares: of a group's units, each above 0 and below 1; a share is rounded to whole units, at least one and
            never all, and what rounds to the same number is measured once.

    Raises:
        UsageError: a share is not between 0 and 1, or the importance is that of another network.
    """
    wrong = [share for share in shares if not 0 < share < 1]
    if wrong:
        raise UsageError(f"a share of {wrong[0]:g} masked", expected="more than 0 and less than 1")
    chosen = [group for group in groups(trainable) if group.name in importance]
    _check_sizes(chosen, importance)
    plan = {group: _counts(group, shares) for group in chosen}
    told = progress or Silent()
    masks = sum(len(counts) + _singles(group) for group, counts in plan.items())
    told.stage("importance", "masking units", 1 + masks + len(ALONE))

    def drop(masks: Sequence[tuple[Group, Sequence[int]]]) -> float:
        with ExitStack() as stack:
            for group, indices in masks:
                stack.enter_context(masked(trainable, group, indices))
            value = base - score(trainable.module)
        told.advance()
        return value

    base = score(trainable.module)
    told.advance()
    curves: dict[str, Curve] = {}
    alone: dict[str, NDArray[np.float64]] = {}
    for group, counts in plan.items():
        order = np.argsort(importance[group.name], kind="stable").tolist()
        drops = tuple(drop([(group, order[:count])]) for count in counts)
        curves[group.name] = Curve(tuple(count / group.size for count in counts), counts, drops)
        if _singles(group):
            alone[group.name] = np.array([drop([(group, [index])]) for index in range(group.size)])
    kinds = {kind: [one for one in chosen if one.kind is kind and one.name in alone] for kind in ALONE}
    together = [_together(kind, members, alone, drop) for kind, members in kinds.items()]
    told.advance(together.count(None))
    cheap = tuple(one for one in together if one is not None)
    return Sensitivity(base, curves, alone, cheap, _agreements(kinds, alone, importance))


def _together(
    kind: Kind,
    members: Sequence[Group],
    alone: Mapping[str, NDArray[np.float64]],
    drop: Callable[[Sequence[tuple[Group, Sequence[int]]]], float],
) -> Together | None:
    """Mask all cheap units of a kind at once, but leave one of each group."""
    masks, units = [], []
    for group in members:
        order = np.argsort(alone[group.name], kind="stable")[: group.size - 1]
        cheap = [int(index) for index in order if alone[group.name][index] <= CHEAP]
        if cheap:
            masks.append((group, cheap))
            units += [(group.name, index) for index in cheap]
    if not units:
        return None
    units.sort(key=lambda unit: float(alone[unit[0]][unit[1]]))
    return Together(kind, tuple(units), drop(masks))


def _agreements(
    kinds: Mapping[Kind, Sequence[Group]], alone: Mapping[str, NDArray[np.float64]], importance: Scores
) -> dict[Kind, float]:
    found = {}
    for kind, members in kinds.items():
        estimated = np.concatenate([np.zeros(0), *(importance[group.name] for group in members)])
        measured = np.concatenate([np.zeros(0), *(alone[group.name] for group in members)])
        if len(set(estimated.tolist())) > 1 and len(set(measured.tolist())) > 1:
            found[kind] = float(np.corrcoef(rankdata(estimated), rankdata(measured))[0, 1])
    return found


def _counts(group: Group, shares: Sequence[float]) -> tuple[int, ...]:
    counts = {min(max(1, round(share * group.size)), group.size - 1) for share in shares}
    return tuple(sorted(counts - {0}))


def _singles(group: Group) -> int:
    """How many units are masked alone; a unit that is the only one cannot be left out."""
    return group.size if group.kind in ALONE and group.size > 1 else 0


def _check_sizes(chosen: Sequence[Group], importance: Scores) -> None:
    for group in chosen:
        if importance[group.name].shape != (group.size,):
            raise UsageError(
                f"the importance of {group.name} has shape {importance[group.name].shape}",
                expected=f"({group.size},)",
                cause="it was measured on another network, or on this one before it was pruned",
            )
