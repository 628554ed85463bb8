"""Whether a step is kept: a verdict and its reason in plain words, from what was measured.

Nothing here measures. What is missing, or not a number, leads to UNKNOWN; unknown is never a pass. So does an original
that gets next to nothing right, or no more than chance: no step could be seen to lose anything.

    order of the questions          structural (fuse)             precision (int8), lever    build (other runtime)
    1 outputs NaN, Inf, constant    FAIL                          FAIL                       FAIL
    2 equal to what it came from    else FAIL                     not asked                  else FAIL, wider limits
    3 accuracy inside the budget    else REJECTED                 else REJECTED              else REJECTED
    4 speed against the step before not slower, else REJECTED     faster, else REJECTED      faster, else REJECTED

Cleaning is judged as a structural step, but not by its speed: the steps behind it need a clean graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from vitesse.ledger import Parity, Verdict
from vitesse.verify.chance import MOST_OF_NOTHING, above_chance
from vitesse.verify.health import Finding

METRIC_NAMES = {"coco_ap": "AP", "top1": "top-1", "agreement": "agreement with the original"}


class StepKind(StrEnum):
    """What a step promises."""

    SOURCE = "source"  # the model as it came: nothing to compare it with
    CLEANING = "cleaning"  # the same numbers from fewer operators; what later steps build on
    STRUCTURAL = "structural"  # the same numbers from fewer or other operators
    PRECISION = "precision"  # other numbers, inside the accuracy budget
    LEVER = "lever"  # a smaller network: other numbers, perhaps other shapes, inside the accuracy budget
    BUILD = "build"  # another runtime: the same numbers up to its arithmetic


@dataclass(frozen=True)
class Speed:
    """Time of the step before over time of this step (above 1: faster), with its 95 % confidence interval.

    `quiet` is False when other processes kept the cores busy: then a ratio says as much about them as about the step.
    """

    ratio: float
    low: float
    high: float
    quiet: bool = True


@dataclass(frozen=True)
class Evidence:
    """What was measured about one step.

    kind: what the step promises.
    metric: `coco_ap`, `top1` or `agreement`; images: on how many.
    value: accuracy in 0..1; drop: points lost against the source, negative = gained; None = unknown,
        and `accuracy_reason` says why.
    chance: points, 0..100, that one answer for all images would get.
    parity: distance to the outputs this step has to reproduce: of the untouched model, or, after a precision
        step, of that step's artifact. Asked for structural and build steps.
    findings: from `health` and `parity`.
    speed: against the step before; None = not measured, and `speed_reason` says why.
    """

    kind: StepKind
    metric: str = ""
    images: int = 0
    value: float | None = None
    drop: float | None = None
    accuracy_reason: str = ""
    chance: float = 0.0
    parity: Parity | None = None
    parity_reason: str = ""
    findings: tuple[Finding, ...] = ()
    speed: Speed | None = None
    speed_reason: str = ""


@dataclass(frozen=True)
class Limits:
    """What a step may cost.

    max_drop: points of accuracy (0.5 = half a point) against the source.
    max_rel, min_cosine: parity of structural steps. float32 rounding through a deep model stays near 1e-5;
        a changed operator shows as 1e-2 or more.
    build_max_rel, build_min_cosine: parity of another runtime, which may sum and round differently.
    slack: how much slower than the step before a structural step may be (0.05 = 5 %). Loading the same file twice gives
        sessions that differ by a few percent throughout, which no interval within one run shows; and later steps
        build on these.
    """

    max_drop: float = 0.5
    max_rel: float = 1e-3
    min_cosine: float = 0.9999
    build_max_rel: float = 0.05
    build_min_cosine: float = 0.999
    slack: float = 0.05

    def allow(self, drop: float) -> bool:
        """Whether a drop is inside the budget; a half point computed from floats is still a half point."""
        return drop <= self.max_drop + 1e-9


def judge(step: Evidence, limits: Limits) -> tuple[Verdict, str]:
    """Return the verdict and the reason to print beside it."""
    broken = [finding.text for finding in step.findings if finding.fatal]
    if broken:
        return Verdict.FAIL, "; ".join(broken)
    for question in (_parity, _accuracy, _speed):
        answer = question(step, limits)
        if answer is not None:
            return answer
    return Verdict.PASS, _praise(step)


def notes(step: Evidence, limits: Limits) -> tuple[str, ...]:
    """Return what a reader should know beside the verdict: suspicions and, once a run, how much an image weighs."""
    said = [finding.text for finding in step.findings if not finding.fatal]
    if step.kind is StepKind.SOURCE and step.images and 100 / step.images > limits.max_drop:
        weight = 100 / step.images
        said.append(
            f"on {step.images} images one image weighs about {weight:.1f} points of {_metric(step)}: a drop of "
            f"{limits.max_drop:g} points cannot be told from chance; the verdict follows the measured value"
        )
    return tuple(said)


def _parity(step: Evidence, limits: Limits) -> tuple[Verdict, str] | None:
    if step.kind in (StepKind.SOURCE, StepKind.PRECISION, StepKind.LEVER):
        return None
    if step.parity is None:
        return Verdict.UNKNOWN, f"the outputs were not compared: {step.parity_reason or 'no reason given'}"
    structural = step.kind in (StepKind.CLEANING, StepKind.STRUCTURAL)
    max_rel = limits.max_rel if structural else limits.build_max_rel
    min_cosine = limits.min_cosine if structural else limits.build_min_cosine
    relative, cosine = step.parity.max_rel, step.parity.cosine
    # Written as "not inside" so that NaN never counts as equal.
    if relative is not None and relative <= max_rel and cosine >= min_cosine:
        return None
    return Verdict.FAIL, _difference(step.parity, max_rel, min_cosine)


def _difference(parity: Parity, max_rel: float, min_cosine: float) -> str:
    relative = "an unknown part" if parity.max_rel is None else f"{100 * parity.max_rel:.3g} %"
    text = (
        f"the outputs differ from the model before: `{parity.worst_output}` by up to {relative} "
        f"(allowed {100 * max_rel:g} %), smallest cosine {parity.cosine:.6f} (at least {min_cosine:g})"
    )
    return f"{text}; first diverging: {parity.first_diverging}" if parity.first_diverging else text


def _accuracy(step: Evidence, limits: Limits) -> tuple[Verdict, str] | None:
    known = step.value if step.kind is StepKind.SOURCE else step.drop
    if known is None or math.isnan(known):
        return Verdict.UNKNOWN, f"accuracy is unknown: {step.accuracy_reason or 'no reason given'}"
    if step.kind is StepKind.SOURCE:
        # A smaller budget than that shows smaller losses, too.
        can_be_lost = above_chance(100 * known, step.chance, min(limits.max_drop, MOST_OF_NOTHING))
        return None if can_be_lost else (Verdict.UNKNOWN, _nothing_right(step, limits))
    if limits.allow(known):
        return None
    return Verdict.REJECTED, f"loses {_points(known)} of {_metric(step)} (budget {limits.max_drop:g})"


def _nothing_right(step: Evidence, limits: Limits) -> str:
    if step.chance:
        compared = f"always answering the most frequent class gets {step.chance / 100:.4f}"
        shown = f"{compared}, so that next to nothing of what the original knows could be seen to be lost"
    else:
        shown = (
            "the original gets next to nothing right on them, so that a step which lost all of it would be inside the "
            f"budget of {limits.max_drop:g} points"
        )
    return (
        f"{_metric(step)} {step.value:.4f} on {step.images} images: {shown}; likely the spec prepares images or orders "
        "classes otherwise than the training did (a checkpoint without --spec is fed as the original's evaluation), or "
        f"the labels are of another task{' or nearly all of one class' if step.chance else ''}; see docs/spec.md"
    )


def _speed(step: Evidence, limits: Limits) -> tuple[Verdict, str] | None:
    if step.kind is StepKind.SOURCE:
        return None
    speed = step.speed
    if speed is None or not all(map(math.isfinite, (speed.ratio, speed.low))) or math.isnan(speed.high):
        return Verdict.UNKNOWN, f"speed was not measured: {step.speed_reason or 'no reason given'}"
    if step.kind is StepKind.CLEANING:
        return None
    if step.kind is StepKind.STRUCTURAL:
        slower = speed.quiet and speed.high < 1.0 and speed.ratio < 1.0 - limits.slack
        return (Verdict.REJECTED, _slower(speed)) if slower else None
    if speed.low > 1.0:
        return None
    if speed.high < 1.0:
        return Verdict.REJECTED, _slower(speed)
    if math.isinf(speed.high):
        return Verdict.UNKNOWN, "speed was measured in too few rounds to tell it from chance"
    interval = f"95 % interval {speed.low:.2f} to {speed.high:.2f}"
    return Verdict.REJECTED, f"not faster than the step before: {speed.ratio:.2f}× ({interval})"


def _slower(speed: Speed) -> str:
    percent = 100 * (1 / speed.ratio - 1)
    return f"{percent:.{0 if percent >= 1 else 1}f} % slower than the step before"


def _praise(step: Evidence) -> str:
    if step.kind is StepKind.SOURCE:
        return f"the starting point: {_metric(step)} {step.value:.4f} on {step.images} images"
    assert step.drop is not None and step.speed is not None
    return f"{_metric(step)} {_change(step.drop)}, {step.speed.ratio:.2f}× as fast as the step before"


def _change(drop: float) -> str:
    if abs(drop) < 0.005:
        return "unchanged"
    return f"{_points(drop)} lower, inside the budget" if drop > 0 else f"{_points(-drop)} higher"


def _points(value: float) -> str:
    text = f"{value:.2f}" if value < 1 else f"{value:.1f}"
    return f"{text} points"


def _metric(step: Evidence) -> str:
    return METRIC_NAMES.get(step.metric, step.metric or "accuracy")
