"""Ledger rows as text, once, so that the terminal, Markdown and HTML show the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitesse.ledger import Ledger, Row, Verdict

NO_REASON = "no reason was recorded"
DASH = "–"
_CLEARLY_FEWER = 0.95

METRICS: Mapping[str, str] = {"coco_ap": "AP", "top1": "top-1", "agreement": "agreement"}

# Fields of a row that a reader expects a figure for, and how they are called in "… not measured: reason".
MEASURED: Mapping[str, str] = {
    "accuracy": "accuracy",
    "parity": "parity",
    "latency_ms": "latency",
    "throughput_per_s": "throughput",
    "memory_mb": "memory",
    "gain": "gain",
}


@dataclass(frozen=True)
class Cell:
    """A figure as text; `reason` is set, and the text a dash, when it was not measured."""

    text: str
    reason: str = ""


@dataclass(frozen=True)
class Column:
    """A column of figures: key into `RowText.cells`, heading, unit."""

    key: str
    heading: str
    unit: str = ""


@dataclass(frozen=True)
class RowText:
    """One step in words and figures.

    `changed` is (name, count) of what the step changed, `unchanged` the names it looked for and did not find;
    `missing` groups what was not measured by its reason: (what, reason).
    """

    number: int
    stage: str
    verdict: Verdict
    reason: str
    chosen: bool
    cells: Mapping[str, Cell]
    changed: tuple[tuple[str, int], ...]
    unchanged: tuple[str, ...]
    details: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]

    def changes(self) -> str:
        """Return what the step changed in one line, for example `18 LayerNormalization, 6 Gelu`."""
        return ", ".join(f"{count:,} {name}" for name, count in self.changed)


def columns(ledger: Ledger) -> tuple[Column, ...]:
    """Return the columns of figures, with the accuracy column named after the run's metric.

    Operations and parameters are shown where a step made the network itself smaller.
    """
    return (
        Column("size", "size", "MB"),
        *(
            (Column("flops", "work", "GFLOPs"), Column("parameters", "weights", "M"))
            if _shrinks(ledger)
            else ()
        ),
        Column("accuracy", metric_name(ledger)),
        Column("drop", "drop", "points"),
        Column("p50", "p50", "ms"),
        Column("p90", "p90", "ms"),
        Column("p99", "p99", "ms"),
        Column("speed", "speed", "img/s"),
        Column("memory", "memory", "MB"),
        Column("gain", "gain"),
        Column("spread", "spread"),
    )


def metric_name(ledger: Ledger) -> str:
    """Return the short name of the metric the run was judged by; `accuracy` when none was measured."""
    for row in ledger.rows:
        if row.accuracy is not None:
            return METRICS.get(row.accuracy.metric, row.accuracy.metric)
    return "accuracy"


def row_texts(ledger: Ledger) -> tuple[RowText, ...]:
    """Return every row of the ledger as text, numbered from 1."""
    shrinks = _shrinks(ledger)
    return tuple(
        _row_text(row, index, index == ledger.chosen, shrinks) for index, row in enumerate(ledger.rows)
    )


def _row_text(row: Row, index: int, chosen: bool, shrinks: bool) -> RowText:
    changed = sorted(((name, count) for name, count in row.changes.items() if count), key=lambda one: -one[1])
    return RowText(
        number=index + 1,
        stage=row.stage,
        verdict=row.verdict,
        reason=row.reason,
        chosen=chosen,
        cells={**_cells(row, is_source=index == 0), **(_costs(row) if shrinks else {})},
        changed=tuple(changed),
        unchanged=tuple(name for name, count in row.changes.items() if not count),
        details=_details(row),
        missing=_missing(row),
    )


def _cells(row: Row, *, is_source: bool) -> dict[str, Cell]:
    def cell(text: str | None, field: str) -> Cell:
        return Cell(DASH, row.unmeasured.get(field, NO_REASON)) if text is None else Cell(text)

    latency, accuracy, spread = row.latency_ms, row.accuracy, row.gain_spread
    drop = None if accuracy is None else accuracy.drop
    if accuracy is not None and drop is None and is_source:
        drop = 0.0
    return {
        "size": cell(None if row.artifact is None else decimal(row.artifact.bytes / 1e6), "artifact"),
        "accuracy": cell(None if accuracy is None else f"{accuracy.value:.4f}", "accuracy"),
        "drop": cell(None if drop is None else signed(drop), "accuracy" if accuracy is None else "drop"),
        "p50": cell(None if latency is None else decimal(latency.p50), "latency_ms"),
        "p90": cell(None if latency is None else decimal(latency.p90), "latency_ms"),
        "p99": cell(None if latency is None else decimal(latency.p99), "latency_ms"),
        "speed": cell(
            None if row.throughput_per_s is None else decimal(row.throughput_per_s), "throughput_per_s"
        ),
        "memory": cell(None if row.memory_mb is None else decimal(row.memory_mb), "memory_mb"),
        "gain": cell(None if row.gain is None else times(row.gain), "gain"),
        "spread": Cell("" if spread is None else f"{spread[0]:.2f}–{spread[1]:.2f}"),
    }


def _costs(row: Row) -> dict[str, Cell]:
    uncounted = Cell(DASH, "operations are counted on a graph of standard operators")
    return {
        "flops": uncounted if row.flops is None else Cell(decimal(row.flops / 1e9)),
        "parameters": uncounted if row.parameters is None else Cell(decimal(row.parameters / 1e6)),
    }


def _shrinks(ledger: Ledger) -> bool:
    """Whether a step left clearly fewer operations; merging a few by fusion is not that."""
    whole = ledger.rows[0].flops if ledger.rows else None
    return whole is not None and any(
        row.flops is not None and row.flops < _CLEARLY_FEWER * whole for row in ledger.rows
    )


def _details(row: Row) -> tuple[str, ...]:
    found = []
    if row.accuracy is not None and row.accuracy.details:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in row.accuracy.details.items())
        found.append(f"{figures} on {row.accuracy.images:,} images")
    if row.parity is not None:
        where = (
            f" ({row.parity.worst_output} is furthest off for its range)" if row.parity.worst_output else ""
        )
        diverging = (
            f"; first diverging tensor {row.parity.first_diverging}" if row.parity.first_diverging else ""
        )
        distance = f"cosine {row.parity.cosine:.6f}, largest difference {_short(row.parity.max_abs)}"
        found.append(f"against the untouched model: {distance}{where}{diverging}")
    return (*found, *row.notes)


def _missing(row: Row) -> tuple[tuple[str, str], ...]:
    """Group what is null by its reason, in the order of the fields."""
    absent = {label: field for field, label in MEASURED.items() if getattr(row, field) is None}
    if row.artifact is None:
        absent["size"] = "artifact"
    by_reason: dict[str, list[str]] = {}
    for label, field in absent.items():
        by_reason.setdefault(row.unmeasured.get(field, NO_REASON), []).append(label)
    for field, reason in row.unmeasured.items():
        if field not in absent.values():
            by_reason.setdefault(reason, []).append(field.replace("_", " "))
    return tuple((", ".join(labels), reason) for reason, labels in by_reason.items())


def decimal(value: float) -> str:
    """Write a positive figure with the digits that can matter: 0.042, 9.87, 98.70, 987.0, 9,870."""
    magnitude = abs(value)
    digits = 3 if magnitude < 0.1 else 2 if magnitude < 100 else 1 if magnitude < 1000 else 0
    return f"{value:,.{digits}f}"


def _short(value: float) -> str:
    """Write a difference of any size with two digits and a minus that no line breaks after: 2.4e−06."""
    return f"{value:.2g}".replace("-", "−")


def signed(value: float) -> str:
    """Write points with two digits and a typographic minus; never a negative zero."""
    text = f"{value:.2f}"
    return "0.00" if text in ("0.00", "-0.00") else text.replace("-", "−")


def times(value: float) -> str:
    """Write a ratio: 1.62×."""
    return f"{value:.2f}×"
