"""What an ended search says: the choice with its reason, every trial with a verdict, every block with its fate."""

from __future__ import annotations

from dataclasses import replace

from vitesse.precision.search.found import Found, Sensitivity, Trial
from vitesse.precision.search.greedy import Exploration
from vitesse.precision.search.words import change_of, metric_of, probe_of, slowness_of, verdict_of


def outcome_of(exploration: Exploration, seconds: float) -> Found:
    """Return everything about a search for its reader.

    Args:
        exploration: after `explore`.
        seconds: that it took.
    """
    chosen = _chosen(exploration)
    subject = exploration.subject
    raced = [trial.speed for trial in exploration.judged() if trial.speed is not None]
    baseline_ms = raced[0].baseline_ms if raced else None
    judged = {id(trial) for trial in exploration.judged()}
    trials = tuple(
        _told(exploration, trial, chosen, baseline_ms)
        if id(trial) in judged
        else replace(
            trial, verdict=f"{_purpose(trial, exploration)}: {probe_of(trial.score, subject.metric)}"
        )
        for trial in exploration.measuring.trials
    )
    return Found(
        runtime=subject.runtime,
        chosen=frozenset() if chosen is None else chosen.blocks,
        reason=_reason(exploration, chosen),
        variant=exploration.variant,
        trials=trials,
        sensitivities=tuple(_sensitivity(exploration, name, chosen) for name in subject.blocks),
        max_drop=exploration.max_drop,
        allowed=exploration.allowed,
        metric=subject.metric,
        original=subject.original,
        images=exploration.plan.scored,
        baseline_ms=baseline_ms,
        estimate_s=exploration.plan.seconds,
        seconds=seconds,
        notes=(*exploration.notes, *_resolution(exploration)),
    )


def _chosen(exploration: Exploration) -> Trial | None:
    """Return the fastest set inside the budget that is surely faster than the FP32 build."""
    paying = [
        one
        for one in exploration.judged()
        if exploration.inside(one) and one.speed is not None and one.speed.faster
    ]
    return max(paying, key=lambda one: 0.0 if one.speed is None else one.speed.gain, default=None)


def _reason(exploration: Exploration, chosen: Trial | None) -> str:
    metric = exploration.subject.metric
    if chosen is not None:
        count, whole = len(chosen.blocks), len(exploration.everything)
        speed = "" if chosen.speed is None else f", {chosen.speed.gain:.2f}× as fast as FP32"
        return f"{count} of {whole} blocks lowered: {change_of(chosen.score.drop, metric)}{speed}"
    judged = exploration.judged()
    inside = [one for one in judged if exploration.inside(one) and one.speed is not None]
    if inside:
        best = max(inside, key=lambda one: 0.0 if one.speed is None else one.speed.gain)
        return "rejected: " + ("" if best.speed is None else slowness_of(best.speed))
    whole_trial = next((one for one in judged if one.blocks == exploration.everything), None)
    if whole_trial is None:
        return "nothing could be judged in the time that was given"
    if whole_trial.speed is not None and not whole_trial.speed.faster:
        return f"rejected: {slowness_of(whole_trial.speed)}"
    said = verdict_of(whole_trial, metric, inside=whole_trial.score.drop <= exploration.allowed, refused=True)
    known = [one for one in judged if not exploration.is_refused(one.blocks)]
    if not known:
        return said
    least = min(known, key=lambda one: one.score.drop)
    compared = f"the best of {len(judged)} sets: {change_of(least.score.drop, metric)}"
    return f"{said}; {compared}, {exploration.allowed:.2g} allowed"


def _told(exploration: Exploration, trial: Trial, chosen: Trial | None, baseline_ms: float | None) -> Trial:
    verdict = verdict_of(
        trial,
        exploration.subject.metric,
        inside=trial.score.drop <= exploration.allowed,
        refused=exploration.is_refused(trial.blocks),
        chosen=trial is chosen,
    )
    estimated = (
        None if baseline_ms is None or not exploration.gain else baseline_ms - exploration.saved(trial.blocks)
    )
    return replace(trial, verdict=verdict, estimated_ms=estimated)


def _purpose(trial: Trial, exploration: Exploration) -> str:
    if len(trial.blocks) == 1 and len(exploration.everything) > 1:
        return "alone"
    return f"everything, {trial.variant}" if trial.variant else "everything, as given"


def _sensitivity(exploration: Exploration, name: str, chosen: Trial | None) -> Sensitivity:
    alone = exploration.measuring.known(exploration.subject, frozenset({name}), exploration.plan.probed)
    lowered = chosen is not None and name in chosen.blocks
    if lowered:
        fate = "lowered"
    elif chosen is None and name not in exploration.fates:
        fate = "FP32: nothing was chosen"
    else:
        fate = exploration.fates.get(name, "back in FP32: costs most for what it saves")
    return Sensitivity(
        name,
        None if alone is None else alone.score,
        exploration.subject.shares.get(name),
        exploration.gain.get(name),
        lowered,
        fate,
    )


def _resolution(exploration: Exploration) -> tuple[str, ...]:
    """Say when the search images cannot resolve the budget."""
    weight = 100 / exploration.plan.scored
    if weight <= exploration.max_drop:
        return ()
    return (
        f"on {exploration.plan.scored} images one image weighs about {weight:.1f} points of "
        f"{metric_of(exploration.subject.metric)}, more than the budget: the search decides roughly, "
        "all validation images decide in the end",
    )
