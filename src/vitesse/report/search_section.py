"""What a search tried, in the report: its curve of latency and accuracy, and what became of every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitesse.precision.search.found import Found, Sensitivity, Trial, load_found
from vitesse.precision.search.words import duration_of, metric_of
from vitesse.report.figures import DASH, signed
from vitesse.report.plot import Budgets, Point, draw

HEADS = ("block", "drop alone, points", "outputs off, %", "operations, %", "saves, ms", "")


@dataclass(frozen=True)
class BlockText:
    """One block as text; `cells` stand under `HEADS`, between its name and its fate."""

    block: str
    cells: tuple[str, ...]
    fate: str
    lowered: bool


@dataclass(frozen=True)
class SearchText:
    """One search in words and figures. `unplotted`: why there is no curve, empty where there is one."""

    runtime: str
    sentences: tuple[str, ...]
    blocks: tuple[BlockText, ...]
    notes: tuple[str, ...]
    unplotted: str


def load_searches(run: Path) -> tuple[Found, ...]:
    """Read the outcome of every search in the run folder, by runtime.

    Raises:
        RunFolderError: one of the files is damaged.
    """
    return tuple(load_found(path) for path in sorted(run.glob("search-*.json")))


def search_text(found: Found) -> SearchText:
    """Return what the report says about a search."""
    return SearchText(
        found.runtime,
        _sentences(found),
        tuple(_block(one) for one in found.sensitivities),
        found.notes,
        "" if len(search_points(found)) > 1 else "No curve: no set of blocks was raced.",
    )


def search_points(found: Found) -> tuple[Point, ...]:
    """Return the points of the curve: the FP32 build, then every set that was scored on all search images.

    Latency in ms: of what was raced, the FP32 build's p50 over the gain; of the rest, unlabelled, the sum over its
    blocks. Accuracy, 0 to 1: the original's less the drop.
    """
    if found.baseline_ms is None:
        return ()
    points = [Point("FP32", found.baseline_ms, found.original, "source")]
    for trial in found.trials:
        ms = trial.estimated_ms if trial.speed is None else found.baseline_ms / trial.speed.gain
        if ms is not None and trial.score.images == found.images:
            points.append(_point(found, trial, ms))
    return tuple(points)


def search_plot(found: Found, *, width: int, height: int) -> str:
    """Return the curve as an `<svg>` element; empty when nothing was raced."""
    budgets = Budgets(
        found.original - found.max_drop / 100, f"largest drop allowed, {found.max_drop:g} points", None
    )
    metric = f"{metric_of(found.metric)} on {found.images} search images"
    return draw(search_points(found), budgets, metric, width=width, height=height)


def _point(found: Found, trial: Trial, ms: float) -> Point:
    count, whole = len(trial.blocks), len(found.sensitivities)
    words = "everything lowered" if count == whole else f"{count} of {whole} blocks"
    accuracy = found.original - trial.score.drop / 100
    if trial.speed is None:
        return Point("", ms, accuracy, "estimated", f"{words}, latency estimated")
    if trial.variant != found.variant and trial.variant:
        words = f"{words}, {trial.variant}"
    chosen = trial.verdict.startswith("chosen")
    kind = (
        "chosen"
        if chosen
        else "pass"
        if trial.score.drop <= found.allowed and trial.speed.faster
        else "rejected"
    )
    return Point(words, ms, accuracy, kind)


def _sentences(found: Found) -> tuple[str, ...]:
    way = f" Quantised by {found.variant}." if found.variant else ""
    tried = (
        f"{len(found.trials)} trials in {duration_of(found.seconds)} (estimated: about "
        f"{duration_of(found.estimate_s)}), judged on {found.images} calibration images, which the verdicts of the "
        f"ledger do not use. There a set may lose {found.allowed:.2g} of the {found.max_drop:g} points."
    )
    reason = found.reason if found.chosen else f"Nothing is lowered: {found.reason}"
    return (f"{reason}.{way}", tried)


def _block(one: Sensitivity) -> BlockText:
    score = one.score
    return BlockText(
        one.block,
        (
            DASH if score is None else signed(score.drop),
            DASH if score is None else f"{100 * score.error:.2f}",
            DASH if one.share is None else f"{100 * one.share:.1f}",
            DASH if one.gained_ms is None else signed(one.gained_ms),
        ),
        one.fate,
        one.lowered,
    )


def plots_of(found: Found, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Return the curve in several sizes (width, height) in pixels; empty where there is none."""
    drawn = tuple(search_plot(found, width=width, height=height) for width, height in sizes)
    return drawn if all(drawn) else ()
