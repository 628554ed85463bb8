"""Searching: plan, measure, and say what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from vitesse.precision.search.found import Blocks, Found, Trial
from vitesse.precision.search.greedy import Exploration
from vitesse.precision.search.measuring import Clock, Measuring
from vitesse.precision.search.outcome import outcome_of
from vitesse.precision.search.plan import SENSING, Plan, plan_for
from vitesse.precision.search.subject import Subject
from vitesse.precision.search.trials import TrialStore
from vitesse.recipe import SearchOptions


def search(
    subject: Subject,
    *,
    max_drop: float,
    options: SearchOptions,
    trials: TrialStore,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    variants: Mapping[str, Callable[[], Subject]] | None = None,
    refused: Collection[Blocks] = (),
    clock: Clock = time.monotonic,
) -> Found:
    """Return the fastest set of blocks that keeps the budget on the search images.

    Args:
        subject: the way of quantising that is tried first.
        max_drop: budget in points.
        trials: where measurements are kept: what is there is not measured again.
        on_trial: hears each trial; on_plan: hears the estimate, before the first one.
        variants: name → makes another way of quantising the same blocks; tried where the first loses too much.
        refused: sets that all validation images refused; only what promises clearly less cost is chosen then.
        clock: seconds, monotonic.

    Raises:
        ModelError, BackendError, SpecError, NotVerified: a set cannot be lowered, or not be judged.
    """
    ways = {"": lambda: subject, **(variants or {})}
    plan = plan_for(len(subject.blocks), len(ways) - 1, subject.images, subject.pace, options)
    on_plan(plan)
    began = clock()
    # The race that decides at the end belongs to the minutes, too.
    until = began + max(0.0, 60 * options.minutes - subject.pace.race_s)
    measuring = Measuring(trials, until, on_trial, clock)
    exploration = Exploration(
        ways, plan, measuring, max_drop, frozenset(refused), began + SENSING * 60 * options.minutes
    )
    exploration.explore()
    return outcome_of(exploration, clock() - began)
