"""The ledger on a terminal: figures in columns, what changed and why below each step, a conclusion at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vitesse.ledger import Ledger, Verdict
from vitesse.report.figures import Column, RowText, columns, row_texts
from vitesse.report.summary import VERDICT_STYLES, Ending, conclude

SHOWN = ("size", "flops", "parameters", "accuracy", "drop", "p50", "speed", "memory", "gain", "spread")
# What a narrow terminal goes without, first to last; all of it stands in the report.
DROPPED = ("spread", "memory", "parameters", "speed", "size", "flops", "drop")
INDENT = 3
LONGEST_STAGE = 22


@dataclass(frozen=True)
class _Layout:
    """Columns that fit and how wide each is, in characters."""

    shown: tuple[Column, ...]
    widths: tuple[int, ...]
    stage: int
    gap: int


def print_ledger(ledger: Ledger, console: Console | None = None) -> None:
    """Print every step and, last, what was chosen, how much faster, at what cost, and whether the budget is met.

    Goes to standard output without a console. Fits any width from 40 characters on: figures that find no place
    are left out, least needed first, before a line would wrap.
    """
    console = console or Console()
    rows, conclusion = row_texts(ledger), conclude(ledger)
    layout = _layout(columns(ledger), rows, console.width)
    console.print(_header(layout), highlight=False)
    for index, row in enumerate(rows):
        console.print(_figures(row, layout), highlight=False)
        for line in _words(row, explained=index == conclusion.explained):
            console.print(Padding(line, (0, 0, 0, INDENT), expand=False), highlight=False)
    good = conclusion.ending in (Ending.FASTER, Ending.KEPT)
    console.print()
    console.print(Text(conclusion.title, style="bold green" if good else "bold red"), highlight=False)
    console.print(Text(conclusion.sentence()), highlight=False)


def _layout(known: Sequence[Column], rows: Sequence[RowText], width: int) -> _Layout:
    """Leave columns out, least needed first, until a line fits in `width` characters."""
    stage = min(LONGEST_STAGE, max((len(row.stage) for row in rows), default=4))
    verdict = max(len(one.value) for one in Verdict)
    shown = [column for column in known if column.key in SHOWN]
    for drop in (None, *DROPPED):
        shown = [column for column in shown if column.key != drop]
        widths = [
            max(len(_heading(column)), *(len(row.cells[column.key].text) for row in rows), 0)
            for column in shown
        ]
        space = width - INDENT - sum(widths) - verdict - len(widths) - 1
        if space >= stage:
            gap = 2 if space >= stage + len(widths) + 1 else 1
            return _Layout(tuple(shown), tuple(widths), stage, gap)
    return _Layout(tuple(shown), tuple(widths), max(6, space), 1)


def _heading(column: Column) -> str:
    return {
        "size": "MB",
        "flops": "GFLOPs",
        "parameters": "M par",
        "p50": "p50 ms",
        "speed": "img/s",
        "memory": "mem MB",
    }.get(column.key, column.heading)


def _header(layout: _Layout) -> Text:
    cells = [_heading(column).rjust(width) for column, width in zip(layout.shown, layout.widths, strict=True)]
    line = (" " * layout.gap).join([" " * INDENT + "step".ljust(layout.stage), *cells, "verdict"])
    return Text(line, style="dim", no_wrap=True)


def _figures(row: RowText, layout: _Layout) -> Text:
    stage = row.stage if len(row.stage) <= layout.stage else f"{row.stage[: layout.stage - 1]}…"
    style = "bold" if row.chosen else ""
    line = Text(f"{row.number:<{INDENT}}{stage:<{layout.stage}}", style=style, no_wrap=True)
    for column, width in zip(layout.shown, layout.widths, strict=True):
        line.append(" " * layout.gap + row.cells[column.key].text.rjust(width), style=style)
    line.append(" " * layout.gap)
    line.append(row.verdict.value, style=VERDICT_STYLES[row.verdict])
    return line


def _words(row: RowText, *, explained: bool) -> list[Text]:
    """Return the reason, what changed in short, and what was not measured with its reason, none of it twice.

    `explained`: the conclusion below gives the reason.
    """
    chosen = [Text("chosen: ", style="bold green")] if row.chosen else []
    lines = [] if explained else [Text.assemble(*chosen, row.reason)]
    if row.changed:
        lines.append(Text(f"changed {row.changes()}", style="dim"))
    missing = [(what, reason) for what, reason in row.missing if reason not in row.reason]
    lines.extend(Text(f"{what} not measured: {reason}", style="dim") for what, reason in missing)
    return lines
