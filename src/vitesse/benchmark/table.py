"""Points as a table on the terminal; what was throttled, unobserved or refused is marked, with the reason below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitesse.benchmark.points import REFUSED, Pair, Point
from vitesse.benchmark.watch import CLEAN

# Other processes that take more than this many cores disturb what is measured beside them.
BUSY_CORES = 0.25
_STYLES = {CLEAN: "green", REFUSED: "red"}


def print_points(points: Sequence[Point], console: Console, chosen: Mapping[Pair, str] | None = None) -> None:
    """Print one line for each point; `chosen` says of some what they were chosen for."""
    on_gpu = any(point.cuda_graph is not None for point in points)
    table = Table(box=None, pad_edge=False, header_style="dim")
    headings = ["batch", "streams", "img/s", "p50 ms", "p99 ms", "device ms" if on_gpu else "threads", "MB"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("observed", no_wrap=True)
    for point in points:
        name = (chosen or {}).get(point.pair, "")
        fifth = _figure(point.device_ms, 2) if on_gpu else str(point.threads)
        cells = [
            str(point.batch),
            str(point.streams),
            _figure(point.throughput_per_s, 1),
            _figure(point.p50_ms, 2),
            _figure(point.p99_ms, 2),
            fifth,
            _figure(point.memory_mb, 0),
        ]
        verdict = Text(point.verdict, style=_STYLES.get(point.verdict, "yellow"))
        if name:
            verdict.append(f"  ← {name}", style="bold")
        table.add_row(*cells, verdict, style="bold" if name else "")
    console.print(table)
    for line in remarks(points):
        console.print(line, style="dim", highlight=False, markup=False)


def remarks(points: Sequence[Point]) -> list[str]:
    """Return why points are refused or not clean, points of the same reason together, and who else was busy."""
    groups: dict[str, list[str]] = {}
    for point in points:
        reason = point.refusal or ("" if point.observed is None else point.observed.why)
        if reason:
            groups.setdefault(f"{point.verdict}: {reason}", []).append(f"{point.batch}×{point.streams}")
    lines = [f"{' '.join(pairs)}  {reason}" for reason, pairs in groups.items()]
    busiest = max((point.foreign_cores or 0.0 for point in points), default=0.0)
    if busiest > BUSY_CORES:
        lines.append(
            f"other processes kept {busiest:.1f} cores busy meanwhile: measure again on a quiet machine"
        )
    return lines


def _figure(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"
