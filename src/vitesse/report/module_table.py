"""Where the time goes, on a terminal: one artifact, or the original beside the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table

from vitesse.profile.by_module import Kind, ModuleProfile, ModuleRow
from vitesse.profile.costs import Cost
from vitesse.profile.operators import OperatorProfile, OperatorTime
from vitesse.report.figures import DASH, decimal, times

MOST_OPERATORS = 20
# What a narrow terminal goes without, first to last.
DROPPED = ("copies ms", "GFLOP/s", "calls", "parameters", "weights MB", "GFLOP", "share", "gain")
GAP = 2


@dataclass
class _Grid:
    """Headings and lines of cells; the first cell of a line is its name. A line's style is rich's."""

    headings: list[str]
    lines: list[tuple[list[str], str]] = field(default_factory=list)

    def add(self, cells: Sequence[str], style: str = "") -> None:
        """Add a line."""
        self.lines.append((list(cells), style))

    def table(self, width: int) -> Table:
        """Lay out in `width` characters, without the columns that find no place."""
        kept = list(range(len(self.headings)))
        for drop in DROPPED:
            if self._width(kept) > width:
                kept = [at for at in kept if self.headings[at] != drop]
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        for at in kept:
            justify: Literal["left", "right"] = "right" if at else "left"
            table.add_column(self.headings[at], justify=justify, no_wrap=True)
        for cells, style in self.lines:
            table.add_row(*(cells[at] for at in kept), style=style)
        return table

    def _width(self, kept: Sequence[int]) -> int:
        rows = [self.headings, *(cells for cells, _ in self.lines)]
        return sum(max(len(row[at]) for row in rows) + GAP for at in kept) - GAP


def print_modules(profiles: Sequence[tuple[str, ModuleProfile]], console: Console | None = None) -> None:
    """Print one profile with its costs, or two side by side with the gain of each part.

    Args:
        profiles: (title, profile) of one artifact or two, the original first; both of the same depth.
    """
    console = console or Console()
    grid = _alone(profiles[0][1]) if len(profiles) == 1 else _beside(profiles[0], profiles[1])
    console.print(grid.table(console.width))
    for title, profile in profiles:
        for line in summary(title, profile):
            console.print(line, style="dim", highlight=False)


def summary(title: str, profile: ModuleProfile) -> tuple[str, ...]:
    """Return how the figures of a profile are to be read, in sentences."""
    around = sum(row.ms for row in profile.rows if row.kind is Kind.VITESSE)
    moving = profile.copies_ms / profile.operators_ms if profile.operators_ms else 0.0
    placed = ", ".join(f"{count} {way}" for way, count in profile.parts_found.items() if count)
    return (
        f"{title}: {profile.backend}, {profile.threads} thread{'' if profile.threads == 1 else 's'}, "
        f"mean of {profile.runs} runs, batch 1",
        f"  whole {decimal(profile.whole_ms)} ms; the rows add up to {decimal(profile.sum_ms)} ms "
        f"({profile.covered:.1%}); not attributed {profile.unattributed:.1%} of the operators' time",
        f"  the call alone: {decimal(profile.call_ms)} ms with the profiler, "
        f"{decimal(profile.unprofiled_call_ms)} ms without; {decimal(around)} ms before and after it",
        f"  copies, operators that only move numbers: {decimal(profile.copies_ms)} ms, {moving:.1%} of the operators",
        f"  nodes placed: {placed}",
        *(f"  {note}" for note in profile.notes),
    )


def print_operators(profiles: Sequence[tuple[str, OperatorProfile]], console: Console | None = None) -> None:
    """Print time by operator type, the slowest first, of one artifact or two."""
    console = console or Console()
    found = [{row.operator: row for row in profile.operators} for _, profile in profiles]
    most: dict[str, float] = {}
    for row in (row for one in found for row in one.values()):
        most[row.operator] = max(row.ms, most.get(row.operator, 0.0))
    names = sorted(most, key=lambda name: -most[name])
    grid = _Grid(["operator", *(text for title, _ in profiles for text in (f"{title} ms", "share", "calls"))])
    for name in names[:MOST_OPERATORS]:
        cells = []
        for one in found:
            known = one.get(name)
            cells += _operator(known) if known else [DASH] * 3
        grid.add([name, *cells])
    console.print(grid.table(console.width))
    for title, profile in profiles:
        console.print(
            f"{title}: {profile.backend}, mean of {profile.runs} runs; operators {decimal(profile.operators_ms)} ms "
            f"of {decimal(profile.call_ms)} ms per call, with the profiler on",
            style="dim",
            highlight=False,
        )


def _operator(row: OperatorTime) -> list[str]:
    return [decimal(row.ms), f"{row.share:.1%}", f"{row.calls:g}"]


def _alone(profile: ModuleProfile) -> _Grid:
    grid = _Grid(["part", "ms", "share", "copies ms", "GFLOP", "GFLOP/s", "weights MB", "parameters"])
    for label, row in _labelled(profile):
        grid.add([label, decimal(row.ms), _share(row), _copies(row), *_costs(row)], _style(row))
    return grid


def _costs(row: ModuleRow) -> tuple[str, str, str, str]:
    if row.cost is None:
        return DASH, DASH, DASH, DASH
    speed = row.gflops_per_s
    return (
        _flops(row),
        DASH if speed is None else decimal(speed),
        _weights(row),
        f"{row.cost.parameters:,}" if row.cost.parameters else DASH,
    )


def _beside(before: tuple[str, ModuleProfile], after: tuple[str, ModuleProfile]) -> _Grid:
    times_of = [text for title, _ in (before, after) for text in (f"{title} ms", "share")]
    grid = _Grid(["part", *times_of, "gain", "copies ms", "GFLOP", "weights MB"])
    old, new = dict(_labelled(before[1])), dict(_labelled(after[1]))
    for label in merged(list(old), list(new)):
        one, other = old.get(label), new.get(label)
        gain = (
            times(one.ms / other.ms) if one and other and other.ms and one.kind is not Kind.RUNTIME else DASH
        )
        spent = [text for row in (one, other) for text in (decimal(row.ms) if row else DASH, _share(row))]
        costs = [_pair(one, other, text) for text in (_copies, _flops, _weights)]
        grid.add([label, *spent, gain, *costs], _style(one or other))
    return grid


def merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Merge two lists of labels; what only the second has stands behind what stands before it there."""
    result = list(first)
    at = 0
    for label in second:
        if label in result:
            at = result.index(label) + 1
        else:
            result.insert(at, label)
            at += 1
    return result


def _labelled(profile: ModuleProfile) -> list[tuple[str, ModuleRow]]:
    """Name every row; those without time and cost are left out."""
    rows = [row for row in profile.rows if row.ms or (row.cost is not None and row.cost != Cost())]
    deep = profile.depth > 0
    return [(f"{row.part}  {row.module}".rstrip() if deep else row.part, row) for row in rows]


def _pair(one: ModuleRow | None, other: ModuleRow | None, text: Callable[[ModuleRow], str]) -> str:
    before, after = (DASH if row is None else text(row) for row in (one, other))
    return before if before == after else f"{before} → {after}"


def _share(row: ModuleRow | None) -> str:
    return DASH if row is None or row.share is None else f"{row.share:.1%}"


def _copies(row: ModuleRow) -> str:
    return decimal(row.copies_ms) if row.copies_ms else DASH


def _flops(row: ModuleRow) -> str:
    return decimal(row.cost.flops / 1e9) if row.cost and row.cost.flops else DASH


def _weights(row: ModuleRow) -> str:
    return decimal(row.cost.weight_bytes / 1e6) if row.cost and row.cost.weight_bytes else DASH


def _style(row: ModuleRow | None) -> str:
    return "dim" if row is not None and row.kind is not Kind.MODEL else ""
