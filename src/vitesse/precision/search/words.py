"""What a search says, in plain words; the same for the terminal, the ledger and the report."""

from __future__ import annotations

from vitesse.precision.search.found import Score, Speed, Trial
from vitesse.verify.gate import METRIC_NAMES


def metric_of(name: str) -> str:
    """Return what people call a metric: AP, top-1."""
    return METRIC_NAMES.get(name, name)


def change_of(drop: float, metric: str) -> str:
    """Write what an accuracy did, with a typographic minus: `AP −12.4`, `top-1 +0.10`, `AP unchanged`."""
    if abs(drop) < 0.005:
        return f"{metric_of(metric)} unchanged"
    digits = 1 if abs(drop) >= 10 else 2
    return f"{metric_of(metric)} {'−' if drop > 0 else '+'}{abs(drop):.{digits}f}"


def speed_of(speed: Speed) -> str:
    """Write a gain over the FP32 build: `1.62×`, with its interval."""
    return f"{speed.gain:.2f}× ({speed.low:.2f} to {speed.high:.2f})"


def slowness_of(speed: Speed) -> str:
    """Say that a trial does not pay."""
    if speed.high < 1.0:
        return f"slower than FP32: {speed_of(speed)}"
    return f"not surely faster than FP32: {speed_of(speed)}"


def verdict_of(
    trial: Trial, metric: str, *, inside: bool, refused: bool = False, chosen: bool = False
) -> str:
    """Say how a trial of a set that was scored on all search images ended.

    Args:
        inside: its drop is inside the part of the budget that a set may use.
        refused: all validation images refused it, or one that promises less cost.
    """
    change = change_of(trial.score.drop, metric)
    if not inside:
        return f"rejected: {change}"
    if trial.speed is not None and not trial.speed.faster:
        return f"rejected: {slowness_of(trial.speed)}"
    said = change if trial.speed is None else f"{change}, {speed_of(trial.speed)}"
    if refused:
        return f"refused on the validation images: {said}"
    return f"chosen: {said}" if chosen else f"inside the budget: {said}"


def probe_of(score: Score, metric: str) -> str:
    """Say what one block or variant alone costs."""
    return f"{change_of(score.drop, metric)}, outputs {100 * score.error:.2g} % off, on {score.images} images"


def duration_of(seconds: float) -> str:
    """Write a time that is only known roughly: `40 seconds`, `3 minutes`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes"


def listed(blocks: frozenset[str] | list[str], most: int = 4) -> str:
    """Name some blocks: `a, b and 7 more`."""
    names = sorted(blocks)
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
