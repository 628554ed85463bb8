"""The importance of a network's units on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from vitesse.compress.importance.figures import (
    PLURAL,
    GroupRow,
    can_go,
    measured_on,
    points,
    ranked_alike,
    rows,
)
from vitesse.compress.importance.record import Importance

# Groups shown from either end of the list.
SHOWN = 8


def print_importance(found: Importance, console: Console | None = None) -> None:
    """Print which groups cost most and least without a quarter of their units, and which single units can go.

    Where nothing was measured, all groups are printed in the network's order. Goes to standard output.
    """
    console = console or Console()
    listed = rows(found)
    console.print(Text(measured_on(found)), highlight=False)
    name = max(len(row.group.name) for row in listed)
    if found.sensitivity is None:
        _print(console, "", listed, name)
        return
    if len(listed) <= 2 * SHOWN:
        _print(console, "points lost without a quarter", listed, name)
    else:
        _print(console, "cost most without a quarter", listed[:SHOWN], name)
        _print(console, "cost least without a quarter", reversed(listed[-SHOWN:]), name)
    for one in found.sensitivity.together:
        console.print()
        console.print(Text(can_go(one)), highlight=False)
    if ranked_alike(found):
        console.print()
        console.print(Text(ranked_alike(found), style="dim"), highlight=False)


def _print(console: Console, title: str, listed: Iterable[GroupRow], name: int) -> None:
    console.print()
    if title:
        console.print(Text(title, style="bold"), highlight=False)
    for row in listed:
        units = f"{row.group.size} {PLURAL[row.group.kind]}"
        drop = "" if row.quarter is None else points(row.quarter)
        console.print(
            Text(f"  {row.group.name:<{name}}  {units:<22}{drop:>8}", no_wrap=True), highlight=False
        )
