"""What an ended search says: the choice with its reason, every trial with a verdict, every block with its fate."""

from __future__ import annotations

from dataclasses import replace

from vitesse.precision.search.found import Found, Sensitivity, Trial
from vitesse.precision.search.greedy import Course
from vitesse.precision.search.words import change_of, metric_of, probe_of, slowness_of, verdict_of


def outcome_of(course: Course, seconds: float) -> Found:
    """Return everything about a search for its reader.

    Args:
        course: after `explore`.
        seconds: that it took.
    """
    chosen = _chosen(course)
    subject = course.subject
    raced = [trial.speed for trial in course.judged() if trial.speed is not None]
    baseline_ms = raced[0].baseline_ms if raced else None
    judged = {id(trial) for trial in course.judged()}
    trials = tuple(
        _told(course, trial, chosen, baseline_ms)
        if id(trial) in judged
        else replace(trial, verdict=f"{_purpose(trial, course)}: {probe_of(trial.score, subject.metric)}")
        for trial in course.measuring.trials
    )
    return Found(
        runtime=subject.runtime,
        chosen=frozenset() if chosen is None else chosen.blocks,
        reason=_reason(course, chosen),
        variant=course.variant,
        trials=trials,
        sensitivities=tuple(_sensitivity(course, name, chosen) for name in subject.blocks),
        max_drop=course.max_drop,
        allowed=course.allowed,
        metric=subject.metric,
        original=subject.original,
        images=course.plan.scored,
        baseline_ms=baseline_ms,
        estimate_s=course.plan.seconds,
        seconds=seconds,
        notes=(*course.notes, *_resolution(course)),
    )


def _chosen(course: Course) -> Trial | None:
    """Return the fastest set inside the budget that is surely faster than the FP32 build."""
    paying = [
        one for one in course.judged() if course.inside(one) and one.speed is not None and one.speed.faster
    ]
    return max(paying, key=lambda one: 0.0 if one.speed is None else one.speed.gain, default=None)


def _reason(course: Course, chosen: Trial | None) -> str:
    metric = course.subject.metric
    if chosen is not None:
        count, whole = len(chosen.blocks), len(course.everything)
        speed = "" if chosen.speed is None else f", {chosen.speed.gain:.2f}× as fast as FP32"
        return f"{count} of {whole} blocks lowered: {change_of(chosen.score.drop, metric)}{speed}"
    judged = course.judged()
    inside = [one for one in judged if course.inside(one) and one.speed is not None]
    if inside:
        best = max(inside, key=lambda one: 0.0 if one.speed is None else one.speed.gain)
        return "rejected: " + ("" if best.speed is None else slowness_of(best.speed))
    whole_trial = next((one for one in judged if one.blocks == course.everything), None)
    if whole_trial is None:
        return "nothing could be judged in the time that was given"
    if whole_trial.speed is not None and not whole_trial.speed.faster:
        return f"rejected: {slowness_of(whole_trial.speed)}"
    said = verdict_of(whole_trial, metric, inside=whole_trial.score.drop <= course.allowed, refused=True)
    known = [one for one in judged if not course.is_refused(one.blocks)]
    if not known:
        return said
    least = min(known, key=lambda one: one.score.drop)
    compared = f"the best of {len(judged)} sets: {change_of(least.score.drop, metric)}"
    return f"{said}; {compared}, {course.allowed:.2g} allowed"


def _told(course: Course, trial: Trial, chosen: Trial | None, baseline_ms: float | None) -> Trial:
    verdict = verdict_of(
        trial,
        course.subject.metric,
        inside=trial.score.drop <= course.allowed,
        refused=course.is_refused(trial.blocks),
        chosen=trial is chosen,
    )
    estimated = None if baseline_ms is None or not course.gain else baseline_ms - course.saved(trial.blocks)
    return replace(trial, verdict=verdict, estimated_ms=estimated)


def _purpose(trial: Trial, course: Course) -> str:
    if len(trial.blocks) == 1 and len(course.everything) > 1:
        return "alone"
    return f"everything, {trial.variant}" if trial.variant else "everything, as given"


def _sensitivity(course: Course, name: str, chosen: Trial | None) -> Sensitivity:
    alone = course.measuring.known(course.subject, frozenset({name}), course.plan.probed)
    lowered = chosen is not None and name in chosen.blocks
    if lowered:
        fate = "lowered"
    elif chosen is None and name not in course.fates:
        fate = "FP32: nothing was chosen"
    else:
        fate = course.fates.get(name, "back in FP32: costs most for what it saves")
    return Sensitivity(
        name,
        None if alone is None else alone.score,
        course.subject.shares.get(name),
        course.gain.get(name),
        lowered,
        fate,
    )


def _resolution(course: Course) -> tuple[str, ...]:
    """Say when the search images cannot resolve the budget."""
    weight = 100 / course.plan.scored
    if weight <= course.max_drop:
        return ()
    return (
        f"on {course.plan.scored} images one image weighs about {weight:.1f} points of "
        f"{metric_of(course.subject.metric)}, more than the budget: the search decides roughly, all validation images "
        "decide in the end",
    )
