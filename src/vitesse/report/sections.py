"""What stands in the report beside the ledger's rows, as plain text: shared by Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from vitesse.ledger import Ledger, Row
from vitesse.report.extras import ModuleBar, OperatorBar, ReportExtras
from vitesse.report.figures import DASH, NO_REASON, decimal, metric_name, row_texts, signed
from vitesse.report.summary import Conclusion

MOST_OPERATORS = 12


@dataclass(frozen=True)
class Fact:
    """A figure of the headline: `allowed` says whether it keeps its budget, None where there is none."""

    label: str
    value: str
    below: str
    allowed: bool | None = None


@dataclass(frozen=True)
class Pair:
    """A figure of the original beside the chosen artifact's; text, with the reason when not measured."""

    label: str
    before: str
    after: str


def model_name(ledger: Ledger) -> str:
    """Return the file name of the model the run started from."""
    return PurePath(ledger.source.replace("\\", "/")).name or ledger.source


def facts(ledger: Ledger, conclusion: Conclusion) -> tuple[Fact, ...]:
    """Return the headline's figures: latency, accuracy, what to deploy; empty while nothing is chosen."""
    if ledger.chosen is None:
        return ()
    source, row = ledger.rows[0], ledger.rows[ledger.chosen]
    return (
        *_latency_fact(ledger, conclusion, row),
        *_accuracy_fact(ledger, conclusion, source, row),
        _file(row),
    )


def _latency_fact(ledger: Ledger, conclusion: Conclusion, row: Row) -> tuple[Fact, ...]:
    speed, budget = conclusion.speed, ledger.latency_budget
    limit = "" if budget is None else f"{float(budget['budget_ms']):g} ms"
    below = {True: f"within the budget of {limit}", False: f"over the budget of {limit}"}.get(
        bool(conclusion.budget_met), ""
    )
    if conclusion.budget_met is None:
        below = f"budget of {limit}: could not be told" if limit else "at batch 1"
    if speed is not None and speed.before_ms is not None and speed.after_ms is not None:
        before, after = decimal(speed.before_ms), decimal(speed.after_ms)
        value = f"{after} ms" if before == after else f"{before} → {after} ms"
    elif row.latency_ms is not None:
        value = f"{decimal(row.latency_ms.p50)} ms"
    else:
        return (Fact("p50 latency", "not measured", row.unmeasured.get("latency_ms", NO_REASON)),)
    return (Fact("p50 latency", value, below, conclusion.budget_met),)


def _accuracy_fact(ledger: Ledger, conclusion: Conclusion, source: Row, row: Row) -> tuple[Fact, ...]:
    label = metric_name(ledger)
    if row.accuracy is None:
        return (Fact(label, "not measured", row.unmeasured.get("accuracy", NO_REASON)),)
    value, images = f"{row.accuracy.value:.4f}", f"{row.accuracy.images:,} images"
    if row is source:
        return (Fact(label, value, images),)
    if source.accuracy is not None:
        value = f"{source.accuracy.value:.4f} → {value}"
    drop = row.accuracy.drop
    if drop is None:
        return (Fact(label, value, f"drop not measured: {row.unmeasured.get('drop', NO_REASON)}"),)
    words = "gained" if drop < 0 else "lost"
    points = f"{signed(abs(drop))} points {words}, {ledger.max_drop:.2f} allowed"
    return (Fact(label, value, f"{points}; {images}", conclusion.cost_allowed),)


def _file(row: Row) -> Fact:
    if row.artifact is None:
        return Fact("file to deploy", "none", row.unmeasured.get("artifact", NO_REASON))
    ref = row.artifact
    return Fact(
        "file to deploy", ref.path, f"{decimal(ref.bytes / 1e6)} MB, {ref.backend}, sha256 {ref.sha256[:12]}…"
    )


def start_up(ledger: Ledger) -> tuple[Pair, ...]:
    """Return load time, cold start, memory and size of the original and the chosen artifact."""
    if ledger.chosen is None:
        return ()
    source, row = ledger.rows[0], ledger.rows[ledger.chosen]
    return (
        Pair("load time", *(_figure(one, "load_ms", one.load_ms, "ms") for one in (source, row))),
        Pair(
            "cold start", *(_figure(one, "cold_start_ms", one.cold_start_ms, "ms") for one in (source, row))
        ),
        Pair("peak memory", *(_figure(one, "memory_mb", one.memory_mb, "MB") for one in (source, row))),
        Pair("file size", *(_figure(one, "artifact", _megabytes(one), "MB") for one in (source, row))),
    )


def _megabytes(row: Row) -> float | None:
    return None if row.artifact is None else row.artifact.bytes / 1e6


def _figure(row: Row, field: str, value: float | None, unit: str) -> str:
    if value is None:
        return f"not measured: {row.unmeasured.get(field, NO_REASON)}"
    return f"{decimal(value)} {unit}"


def operator_bars(operators: Sequence[OperatorBar]) -> tuple[OperatorBar, ...]:
    """Return the operators that take most time, most first, the rest as one bar `other (8 operators)`."""
    ordered = sorted(operators, key=lambda bar: -max(bar.before_ms, bar.after_ms))
    if len(ordered) <= MOST_OPERATORS + 1:
        return tuple(ordered)
    rest = ordered[MOST_OPERATORS:]
    before, after = sum(bar.before_ms for bar in rest), sum(bar.after_ms for bar in rest)
    return (*ordered[:MOST_OPERATORS], OperatorBar(f"other ({len(rest)} operators)", before, after))


def operator_total(operators: Sequence[OperatorBar]) -> OperatorBar:
    """Return the sum over all operators."""
    return OperatorBar(
        "all operators", sum(b.before_ms for b in operators), sum(b.after_ms for b in operators)
    )


def module_total(modules: Sequence[ModuleBar]) -> ModuleBar:
    """Return the sum over all parts."""
    return ModuleBar("image to result", sum(b.before_ms for b in modules), sum(b.after_ms for b in modules))


def operator_time(milliseconds: float) -> str:
    """Write a time in an operator or part; a dash where the graph has none of it."""
    return decimal(milliseconds) if milliseconds else DASH


def not_measured(ledger: Ledger, extras: ReportExtras) -> tuple[tuple[str, str], ...]:
    """Return (what, why) of everything that has no figure, the ledger's rows first."""
    rows = tuple(
        (f"{text.stage}: {what}", reason) for text in row_texts(ledger) for what, reason in text.missing
    )
    return (*rows, *extras.not_measured)


def method(ledger: Ledger, extras: ReportExtras) -> str:
    """Return how it was measured, in one paragraph, with this run's numbers of images and samples."""
    images = max((row.accuracy.images for row in ledger.rows if row.accuracy is not None), default=0)
    fewest = min((row.latency_ms.samples for row in ledger.rows if row.latency_ms is not None), default=0)
    counted = f" ({fewest:,} samples or more per step)" if fewest else ""
    on = f" on {images:,} images" if images else ""
    return (
        "After every step the very file that the row names by its sha256 was checked and timed. Latency is one call "
        f"at batch 1, on a monotonic clock, after warming up until stable{counted}. Baseline and candidate ran "
        "interleaved, A B A B, so that drift hits both; gain is baseline p50 over this p50 of that run, and its spread "
        f"the interquartile range over the rounds. Accuracy was measured{on}; a drop is in points, 1 point = 0.01. "
        "Load time, cold start and peak memory (resident, of a fresh process) were taken apart. "
        f"{extras.method} The protocol stands in docs/benchmarking.md of Vitesse."
    ).replace("  ", " ")


def environment_lines(environment: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the environment as (name, value) text.

    A mapping of plain texts, such as package versions, becomes one line; any other one line per key.
    """
    lines: list[tuple[str, str]] = []
    for name, value in environment.items():
        words = str(name).replace("_", " ")
        if isinstance(value, Mapping) and not all(isinstance(one, str) for one in value.values()):
            lines.extend((f"{words}: {inner}", text) for inner, text in environment_lines(value))
        else:
            lines.append((words, _flat(value)))
    return tuple(lines)


def _flat(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)) and not value:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(one) for one in value)
    if value is None:
        return "unknown"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
