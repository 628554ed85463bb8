"""How many steps a time budget buys."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

# A probe of ten steps leaves out what the first one pays for (allocation, choosing kernels, filling caches); where
# steps are slow, it ends after this share of the budget.
PROBE_STEPS = 10
PROBE_SHARE = 0.05


@dataclass(frozen=True)
class Plan:
    """How many optimiser steps, and after how many of them the network is scored."""

    steps: int
    score_every: int


def plan_of_steps(steps: int, score_every: float) -> Plan:
    """The plan of a number of steps; `score_every` is a share of them, above 0 and up to 1."""
    return Plan(steps, max(1, round(steps * score_every)))


def plan_of_seconds(seconds: float, step_seconds: float, score_seconds: float, score_every: float) -> Plan:
    """The plan that fits in `seconds`, of steps and scores that take so long each; at least one step.

    Scoring takes up to half of the time; where it would take more, there are fewer scores.
    """
    scores = math.ceil(1 / score_every)
    if scores * score_seconds > seconds / 2:
        scores = max(1, int(seconds / 2 / score_seconds))
    steps = max(1, int((seconds - scores * score_seconds) / step_seconds))
    return Plan(steps, max(1, math.ceil(steps / scores)))


def measured_step(
    step: Callable[[], object], seconds: float, clock: Callable[[], float], agree: Callable[[bool], bool]
) -> float:
    """Seconds of one step: the median of a few, the first left out where there are others.

    Args:
        step: takes one, and returns when it is done.
        seconds: the budget.
        clock: seconds.
        agree: gives every process the first one's answer to "is it enough", so that all take equally many steps.
    """
    begin, times = clock(), [clock()]
    while True:
        step()
        times.append(clock())
        enough = len(times) > PROBE_STEPS or times[-1] - begin >= PROBE_SHARE * seconds
        if agree(enough):
            break
    each = [after - before for before, after in itertools.pairwise(times)]
    # A clock that does not tick between two steps would promise endlessly many.
    return max(statistics.median(each[1:] or each), 1e-6)
