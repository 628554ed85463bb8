"""The latency × accuracy plot as SVG, drawn by hand so that the report needs no plotting package.

Colours come from the page's style sheet (classes `p-…`), so the plot follows the light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vitesse.ledger import Ledger, Row, Verdict
from vitesse.report.figures import decimal, metric_name
from vitesse.report.plot_layout import (
    CHARACTER,
    LABEL_HEIGHT,
    Box,
    accuracy_range,
    axis,
    latency_range,
    place_labels,
)

LONGEST_LABEL = 24  # characters


@dataclass(frozen=True)
class Point:
    """One step in the plot; `kind` is source, chosen, pass, rejected, fail, unknown or estimated.

    A point without a label is a small one, and has a `title` that tells what it is.
    """

    label: str
    latency_ms: float
    accuracy: float
    kind: str
    title: str = ""

    @property
    def name(self) -> str:
        """The label, or what stands for it."""
        return self.label or self.title


@dataclass(frozen=True)
class Budgets:
    """The lines of the plot: lowest accuracy allowed (0..1) and the words for it, latency in ms; None: no line."""

    floor: float | None
    floor_text: str
    latency_ms: float | None


def points_of(ledger: Ledger) -> tuple[Point, ...]:
    """Return the steps that have both an accuracy and a latency."""
    found = []
    for index, row in enumerate(ledger.rows):
        if row.accuracy is not None and row.latency_ms is not None:
            kind = row.verdict.value.lower()
            if row.verdict is Verdict.PASS:
                kind = "chosen" if index == ledger.chosen else "source" if index == 0 else "pass"
            label = f"{index + 1} {row.stage}"
            short = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
            found.append(Point(short, latency_without_drift(ledger, row), row.accuracy.value, kind))
    return tuple(found)


def latency_without_drift(ledger: Ledger, row: Row) -> float:
    """Return a step's p50 in ms as the source's p50 over the step's gain, where there is one.

    Steps are measured minutes apart, and the machine drifts; the gain comes from one interleaved run with the source.
    """
    assert row.latency_ms is not None
    source = ledger.rows[0].latency_ms
    if row is ledger.rows[0] or source is None or not row.gain:
        return row.latency_ms.p50
    return source.p50 / row.gain


def left_out(ledger: Ledger) -> tuple[str, ...]:
    """Return the steps that cannot be in the plot, as `4 int8`."""
    return tuple(
        f"{index + 1} {row.stage}"
        for index, row in enumerate(ledger.rows)
        if row.accuracy is None or row.latency_ms is None
    )


def accuracy_plot(ledger: Ledger, *, width: int, height: int) -> str:
    """Return the plot as an `<svg>` element of `width` × `height` pixels; empty when fewer than two points.

    Points far outside the range that matters stand on the border of the plot with an arrow and their value.
    """
    points = points_of(ledger)
    if not points:
        return ""
    return draw(points, _budgets(ledger), metric_name(ledger), width=width, height=height)


def draw(points: Sequence[Point], budgets: Budgets, metric: str, *, width: int, height: int) -> str:
    """Return points, the first of them the original, as `accuracy_plot` does for those of a ledger."""
    if len(points) < 2:
        return ""
    plot = _Plot(points, budgets, metric, width, height)
    described = "; ".join(
        f"{one.name}: {decimal(one.latency_ms)} ms, {plot.metric} {one.accuracy:.4f}" for one in points
    )
    body = [*plot.axes(), *plot.budget_lines(), *plot.marks()]
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-label="{escape(f"Latency against {plot.metric}. {described}.")}">{"".join(body)}</svg>'
    )


def _budgets(ledger: Ledger) -> Budgets:
    source = ledger.rows[0].accuracy
    return Budgets(
        None if source is None else source.value - ledger.max_drop / 100,
        f"largest drop allowed, {ledger.max_drop:g} points",
        None if ledger.latency_budget is None else float(ledger.latency_budget["budget_ms"]),
    )


class _Plot:
    """One drawing of fixed size."""

    def __init__(
        self, points: Sequence[Point], budgets: Budgets, metric: str, width: int, height: int
    ) -> None:
        self.points, self.budgets, self.metric = points, budgets, metric
        self.frame = Box(58, 30, width - 14, height - 48)
        frame, narrow = self.frame, width < 500
        low, high = latency_range([one.latency_ms for one in points], budgets.latency_ms)
        self.x = axis(low, high, (frame.left, frame.right), most_ticks=5 if narrow else 9)
        low, high = accuracy_range([one.accuracy for one in points], budgets.floor)
        self.y = axis(low, high, (frame.bottom, frame.top), most_ticks=6)

    def axes(self) -> list[str]:
        frame = self.frame
        parts = []
        for tick in self.y.ticks:
            y = self.y.at(tick)
            parts.append(svg_line(frame.left, y, frame.right, y, "p-grid"))
            parts.append(svg_text(frame.left - 8, y + 4, self.y.tick_text(tick), "p-tick", "end"))
        for tick in self.x.ticks:
            x = self.x.at(tick)
            parts.append(svg_line(x, frame.bottom, x, frame.bottom + 4, "p-axis"))
            parts.append(svg_text(x, frame.bottom + 18, self.x.tick_text(tick), "p-tick", "middle"))
        parts.append(svg_line(frame.left, frame.bottom, frame.right, frame.bottom, "p-axis"))
        parts.append(
            svg_text(
                frame.right,
                frame.bottom + 38,
                "p50 latency, ms (the original's over the gain) → slower",
                "p-title",
                "end",
            )
        )
        parts.append(svg_text(4, 16, f"{self.metric}, 0 to 1 ↑ better", "p-title", "start"))
        return parts

    def budget_lines(self) -> list[str]:
        frame = self.frame
        parts = []
        if self.budgets.floor is not None:
            y, box = self.y.at(self.budgets.floor), self._floor_label()
            parts.append(svg_line(frame.left, y, frame.right, y, "p-budget"))
            parts.append(svg_text(box.right, box.bottom - 4, self.budgets.floor_text, "p-note", "end"))
        if self._budget_shown() and self.budgets.latency_ms is not None:
            x = self.x.at(self.budgets.latency_ms)
            parts.append(svg_line(x, frame.top, x, frame.bottom, "p-budget"))
            box = self._budget_label()
            parts.append(svg_text(box.left, box.bottom - 4, self._budget_text(), "p-note", "start"))
        return parts

    def marks(self) -> list[str]:
        """Draw markers and their labels; the chosen step and the source get the best places."""
        rank = {"chosen": 0, "source": 1, "pass": 2}
        ordered = sorted(self.points, key=lambda one: (not one.label, rank.get(one.kind, 3)))
        anchors = [(self.x.at(one.latency_ms), self.y.at(one.accuracy)) for one in ordered]
        texts = [self._label(one) for one in ordered]
        boxes = place_labels(anchors, texts, self.frame, self._taken())
        parts = []
        for text, anchor, box in zip(texts, anchors, boxes, strict=True):
            parts.append(_leader(anchor, box) if text else "")
        # The chosen one last, so that nothing lies on top of it.
        for point, anchor in reversed(list(zip(ordered, anchors, strict=True))):
            parts.append(self._marker(point, *anchor))
        for point, text, anchor, box in zip(ordered, texts, anchors, boxes, strict=True):
            if text:
                parts.append(_label_text(text, point.kind, anchor, box))
        return parts

    def _taken(self) -> list[Box]:
        """Return what labels must not cover: the budget lines, two pixels either side, and their texts."""
        frame, boxes = self.frame, []
        if self.budgets.floor is not None:
            floor = self._floor_label()
            boxes += [floor, Box(frame.left, floor.top - 3, frame.right, floor.top + 1)]
        if self._budget_shown() and self.budgets.latency_ms is not None:
            x = self.x.at(self.budgets.latency_ms)
            boxes += [self._budget_label(), Box(x - 2, frame.top, x + 2, frame.bottom)]
        return boxes

    def _label(self, point: Point) -> str:
        if not point.label:
            return ""
        if not self.y.shows(point.accuracy):
            return f"{point.label} ({self.metric} {point.accuracy:.4f})"
        return (
            point.label
            if self.x.shows(point.latency_ms)
            else f"{point.label} ({decimal(point.latency_ms)} ms)"
        )

    def _marker(self, point: Point, x: float, y: float) -> str:
        title = f"{point.name}: {decimal(point.latency_ms)} ms, {self.metric} {point.accuracy:.4f}"
        if not self.y.shows(point.accuracy):
            shape = _path(f"M{x - 6:.1f} {y - 9:.1f}h12l-6 9z")
        elif not self.x.shows(point.latency_ms):
            shape = _path(f"M{x - 9:.1f} {y - 6:.1f}v12l9 -6z")
        elif point.kind == "fail":
            shape = _path(f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10")
        else:
            radius = {"chosen": 7.5, "estimated": 3.5}.get(point.kind, 5.5)
            shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        return f'<g class="p-mark p-{point.kind}"><title>{escape(title)}</title>{shape}</g>'

    def _floor_label(self) -> Box:
        y = self.y.at(self.budgets.floor or 0.0)
        width = CHARACTER * len(self.budgets.floor_text)
        return Box(self.frame.right - width, y + 1, self.frame.right, y + 1 + LABEL_HEIGHT)

    def _budget_shown(self) -> bool:
        return self.budgets.latency_ms is not None and self.x.shows(self.budgets.latency_ms)

    def _budget_text(self) -> str:
        return f"budget {self.budgets.latency_ms:g} ms"

    def _budget_label(self) -> Box:
        width = CHARACTER * len(self._budget_text())
        x = self.x.at(self.budgets.latency_ms or 0.0)
        left = x + 5 if x + 5 + width <= self.frame.right else x - 5 - width
        return Box(left, self.frame.top - LABEL_HEIGHT, left + width, self.frame.top)


def svg_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a line between two points in pixels, of a class of the style sheet."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def svg_text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    """Return a text, escaped, whose `anchor` (start, middle, end) lies at a point in pixels."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(d: str) -> str:
    return f'<path d="{d}"/>'


def _leader(anchor: tuple[float, float], box: Box) -> str:
    """Draw a thin line from a marker to a label that could not stand right beside it."""
    x = min(max(anchor[0], box.left), box.right)
    y = min(max(anchor[1], box.top + 3), box.bottom - 3)
    return svg_line(*anchor, x, y, "p-leader") if abs(x - anchor[0]) + abs(y - anchor[1]) > 16 else ""


def _label_text(text: str, kind: str, anchor: tuple[float, float], box: Box) -> str:
    y = box.bottom - 4
    if box.left >= anchor[0]:
        return svg_text(box.left, y, text, f"p-label p-of-{kind}", "start")
    if box.right <= anchor[0]:
        return svg_text(box.right, y, text, f"p-label p-of-{kind}", "end")
    return svg_text((box.left + box.right) / 2, y, text, f"p-label p-of-{kind}", "middle")
