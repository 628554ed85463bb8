"""The batch size and number of streams that suit this machine, by measuring: for latency and for throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vitesse.artifact import Artifact
from vitesse.backends.protocol import LoadOptions
from vitesse.benchmark.grid_search import TIE_ROUNDS, Found, GridSearch, Limits, Skipped
from vitesse.benchmark.memory_model import MemoryModel
from vitesse.benchmark.points import Bench, FeedsOf, Pair, Point
from vitesse.benchmark.watch import Watch
from vitesse.errors import UsageError

# Of what is free when tuning begins, this much may be used unless a limit is given.
SHARE_OF_FREE = 0.9


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Args:
        latency, throughput: the chosen points; None where no point keeps the limits.
        points, skipped: what was measured, and what of the grid was not, with the reason.
        limits: the bound of p99 and the memory budget that were kept.
        memory: the memory model as fitted at the end; None where memory could not be read.
        gap: after an exhaustive search, by how much the search's throughput setting is slower than the best of the
            whole grid (0.03 = 3 %); None without one. latency_gap: the same for the latency setting.
    """

    latency: Point | None
    throughput: Point | None
    points: tuple[Point, ...]
    skipped: tuple[Skipped, ...]
    limits: Limits
    memory: MemoryModel | None = None
    gap: float | None = None
    latency_gap: float | None = None


def tune(
    artifact: Artifact,
    feeds_of: FeedsOf,
    *,
    options: LoadOptions,
    device: int | None,
    latency_bound_ms: float | None = None,
    memory_mb: float | None = None,
    most_batch: int = 64,
    most_streams: int = 4,
    seconds: float = 1.0,
    exhaustive: bool = False,
    watch: Callable[[], Watch] | None = None,
    on_point: Callable[[Sequence[Point]], None] = lambda points: None,
) -> Tuning:
    """Search the grid of batch sizes and streams, `seconds` a window; arguments else as `Bench`.

    Args:
        latency_bound_ms: p99 of a call that the latency setting keeps; without it, that is batch 1 with one stream.
        memory_mb: what the throughput setting may take (1e6 bytes); without it, 90 % of what is free.
        exhaustive: measure the rest of the grid, too, and say how far the search was from the best.
        on_point: hears of points as they are measured.

    Raises:
        UsageError: a limit that allows nothing.
        MissingExtra: the runtime or the GPU is not here.
    """
    _check(latency_bound_ms, memory_mb, most_batch, most_streams, seconds)
    with Bench(artifact, feeds_of, options, device, watch=watch) as opened:
        budget = memory_mb
        if budget is None and opened.room_mb is not None:
            budget = SHARE_OF_FREE * opened.room_mb
        limits = Limits(latency_bound_ms, budget)
        known: dict[Pair, Point] = {}

        def measure(pairs: Sequence[Pair], rounds: int) -> list[Point]:
            made = opened.measure(pairs, seconds * rounds, rounds=rounds)
            for point in made:
                known[point.pair] = known[point.pair].with_more(point) if point.pair in known else point
            on_point(made)
            return [known[pair] for pair in pairs]

        return search_grid(GridSearch(measure, most_batch, most_streams, limits), limits, exhaustive)


def search_grid(search: GridSearch, limits: Limits, exhaustive: bool = False) -> Tuning:
    """Run a search, measure the rest of the grid where asked to, and hold the choices against the best of it."""
    found = search.run()
    if not exhaustive:
        return _tuning(found, limits)
    best = search.exhaust()
    finalists = (found.latency, found.throughput, best.latency, best.throughput)
    search.again(sorted({one.pair for one in finalists if one is not None}), TIE_ROUNDS)
    whole = search.found()
    by_pair = {point.pair: point for point in whole.points}
    fast = found.throughput and by_pair[found.throughput.pair]
    quick = found.latency and by_pair[found.latency.pair]
    return replace(
        _tuning(replace(whole, latency=quick, throughput=fast), limits),
        gap=None if fast is None else search.gap(fast),
        latency_gap=None if quick is None else search.gap(quick, latency=True),
    )


def _tuning(found: Found, limits: Limits) -> Tuning:
    return Tuning(found.latency, found.throughput, found.points, found.skipped, limits, found.memory)


def _check(
    latency_bound_ms: float | None,
    memory_mb: float | None,
    most_batch: int,
    most_streams: int,
    seconds: float,
) -> None:
    positive = {
        "--latency-bound": latency_bound_ms,
        "--memory": memory_mb,
        "--max-batch": most_batch,
        "--max-streams": most_streams,
        "--seconds": seconds,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} {value:g}", expected="more than 0: nothing keeps that limit")
