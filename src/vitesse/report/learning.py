"""How a network that was made smaller learnt, in the report: its score by step, and where every step is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from vitesse.ledger import Ledger
from vitesse.report.figures import metric_name
from vitesse.report.plot import svg_line, svg_text
from vitesse.report.plot_layout import Box, axis
from vitesse.training.log import read_log

HEADS = ("step", "score, points", "loss")


@dataclass(frozen=True)
class Learning:
    """One training.

    Args:
        stage: its row of the ledger.
        log: its `training.csv`, relative to the run folder.
        metric: what the score is in, as `AP`.
        scores: (step, points, loss or None) of every score, the first before the first step.
    """

    stage: str
    log: str
    metric: str
    scores: tuple[tuple[int, float, float | None], ...]

    def sentence(self) -> str:
        """Return what the scores say in one line."""
        if not self.scores:
            return "Nothing was scored meanwhile."
        first, best = self.scores[0], max(self.scores, key=lambda one: one[1])
        return (
            f"{self.metric} {first[1]:.2f} before the first step, {best[1]:.2f} at best, after step {best[0]:,}, on "
            "images that the verdict does not use."
        )

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Return the scores as text under HEADS."""
        return tuple(
            (f"{step:,}", f"{points:.2f}", "–" if loss is None else f"{loss:.4g}")
            for step, points, loss in self.scores
        )


def learnings(run: Path, ledger: Ledger) -> tuple[Learning, ...]:
    """Read the training of every row that has one; a log that was deleted counts as empty."""
    metric = metric_name(ledger)
    return tuple(
        Learning(row.stage, row.training_log, metric, _scores(run / row.training_log))
        for row in ledger.rows
        if row.training_log
    )


def learning_plot(found: Learning, *, width: int, height: int) -> str:
    """Return the score by step as an `<svg>` element; empty where there are not two scores."""
    if len(found.scores) < 2:
        return ""
    frame = Box(58, 30, width - 14, height - 48)
    steps, points = [one[0] for one in found.scores], [one[1] for one in found.scores]
    pad = max(0.1 * (max(points) - min(points)), 0.05)
    x = axis(0, max(steps), (frame.left, frame.right), most_ticks=5 if width < 500 else 9)
    y = axis(min(points) - pad, max(points) + pad, (frame.bottom, frame.top), most_ticks=5)
    parts = [svg_text(4, 16, f"{found.metric}, points ↑ better", "p-title", "start")]
    for tick in y.ticks:
        parts.append(svg_line(frame.left, y.at(tick), frame.right, y.at(tick), "p-grid"))
        parts.append(svg_text(frame.left - 8, y.at(tick) + 4, y.tick_text(tick), "p-tick", "end"))
    for tick in x.ticks:
        parts.append(svg_line(x.at(tick), frame.bottom, x.at(tick), frame.bottom + 4, "p-axis"))
        parts.append(svg_text(x.at(tick), frame.bottom + 18, f"{tick:,.0f}", "p-tick", "middle"))
    parts.append(svg_line(frame.left, frame.bottom, frame.right, frame.bottom, "p-axis"))
    parts.append(svg_text(frame.right, frame.bottom + 38, "optimiser step →", "p-title", "end"))
    places = [(x.at(step), y.at(value)) for step, value in zip(steps, points, strict=True)]
    parts.append(_curve(places))
    told = escape(f"{found.metric} by step. {found.sentence()}")
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-label="{told}">{"".join(parts)}</svg>'
    )


def _curve(places: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="p-mark p-chosen" cx="{x:.1f}" cy="{y:.1f}" r="5"/>' for x, y in places)
    return f'<polyline class="p-learning" points="{path}"/>{dots}'


def _scores(log: Path) -> tuple[tuple[int, float, float | None], ...]:
    return tuple((int(row["step"]), row["score"], row.get("loss")) for row in read_log(log) if "score" in row)
