"""The best batch size and number of streams with few measurements: coarse steps first, then around the best.

The grid is 1, 2, 3, 4, 6, 8, 12, 16, … on both axes: powers of two and the values half way between. The search only
sees what `measure` returns, so that a test can put any surface in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitesse.benchmark.memory_model import MemoryModel, fit_memory
from vitesse.benchmark.points import Pair, Point
from vitesse.errors import DataError

# A step that gains less is not worth another measurement; what differs less is a tie, and measured again.
LEAST_GAIN = 0.02
NEAR_TIE = 0.05
# Beyond noise, less memory and less waiting count for more than this much throughput.
_EVEN = 0.01
_MOST_TIES, TIE_ROUNDS = 4, 4
# Points that were lucky once fall back when they are measured again, and others come to the top.
_TIE_BREAKS = 3
# One coarse step may fall into a hole, where a batch size fills the device badly; two in a row are a trend.
_STALLS = 2

# How many of the best coarse points are looked around, and how much slower than the best they may be.
_STARTS, _PROMISING = 3, 0.15

# (pairs, rounds) → one point each, in order; a pair measured before comes back with all its rounds, the old ones too.
Measure = Callable[[Sequence[Pair], int], Sequence[Point]]


@dataclass(frozen=True)
class Skipped:
    """A point of the grid that was not measured, and why."""

    batch: int
    streams: int
    why: str


@dataclass(frozen=True)
class Limits:
    """What a setting must keep: the time of a call in 99 of 100 cases, and memory in MB (1e6 bytes); None = any."""

    latency_ms: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True)
class Found:
    """What the search ends with; None where no point keeps the limits. `points` are all that were measured."""

    latency: Point | None
    throughput: Point | None
    points: tuple[Point, ...]
    skipped: tuple[Skipped, ...]
    memory: MemoryModel | None


def grid(most: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, … up to `most`, and `most` itself."""
    values = {2**power for power in range(most.bit_length())}
    values |= {3 * value // 2 for value in values if value > 1} | {most}
    return sorted(value for value in values if value <= most)


def coarse(most: int) -> list[int]:
    """Return the powers of two up to `most`, and `most` itself."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


class GridSearch:
    """Measures points of the grid, one after another, and remembers which were left out and why."""

    def __init__(self, measure: Measure, most_batch: int, most_streams: int, limits: Limits) -> None:
        self._measure, self._limits = measure, limits
        self._batches, self._streams = grid(most_batch), grid(most_streams)
        self._points: dict[Pair, Point] = {}
        self._skipped: dict[Pair, str] = {}
        self._measured_again: set[Pair] = set()
        self.memory: MemoryModel | None = None

    def run(self) -> Found:
        """Search, and measure near-ties again, interleaved.

        Without a limit of latency its setting is batch 1 with one stream.
        """
        self._try((1, 1))
        # The two smallest steps show what an item and a stream take, before anything large is tried.
        for pair in ((2, 1), (1, 2)):
            if pair[0] <= self._batches[-1] and pair[1] <= self._streams[-1]:
                self._try(pair)
        self._coarse()
        for goal in self._goals():
            self._climb(goal)
        for goal in self._goals():
            self._break_ties(goal)
        return self.found()

    def exhaust(self) -> Found:
        """Measure what is left of the grid but what would not fit, and near-ties of the best again."""
        for streams in self._streams:
            for batch in self._batches:
                self._try((batch, streams))
        for goal in self._goals():
            self._break_ties(goal)
        return self.found()

    def found(self) -> Found:
        """Return the best of what is measured."""
        alone = self._points.get((1, 1))
        alone = alone if alone is not None and self._fits(alone) else None
        quick = alone if self._limits.latency_ms is None else self._best(self._quick)
        skipped = [
            Skipped(batch, streams, self._skipped.get((batch, streams), "not near the best point"))
            for streams in self._streams
            for batch in self._batches
            if (batch, streams) not in self._points
        ]
        points = tuple(self._points[pair] for pair in sorted(self._points, key=lambda one: one[::-1]))
        return Found(quick, self._best(self._fast), points, tuple(skipped), self.memory)

    def gap(self, point: Point, *, latency: bool = False) -> float | None:
        """Return by how much a point is slower than the fastest measured that keeps the limits: 0.03 = 3 %.

        None where nothing keeps them, and for the latency setting without a bound, which has nothing to be best of.
        """
        if latency and self._limits.latency_ms is None:
            return None
        most = max(map(self._quick if latency else self._fast, self._points.values()), default=0.0)
        return max(0.0, 1 - (point.throughput_per_s or 0.0) / most) if most else None

    def again(self, pairs: Sequence[Pair], rounds: int) -> None:
        """Measure points once more, interleaved."""
        for point in self._measure(pairs, rounds):
            self._points[point.pair] = point
        self._measured_again.update(pairs)

    def _goals(self) -> list[Callable[[Point], float]]:
        return [self._fast] if self._limits.latency_ms is None else [self._fast, self._quick]

    def _coarse(self) -> None:
        """Measure powers of two, until two numbers of streams in a row gain nothing."""
        best, stalled = 0.0, 0
        for streams in coarse(self._streams[-1]):
            if stalled >= _STALLS:
                for batch in coarse(self._batches[-1]):
                    self._leave_out((batch, streams), "more streams had gained nothing")
                continue
            line = self._line(streams)
            stalled = 0 if line > best * (1 + LEAST_GAIN) else stalled + 1
            best = max(best, line)

    def _line(self, streams: int) -> float:
        """Measure rising batches with one number of streams until two steps gain nothing; return the best speed."""
        best, stalled = 0.0, 0
        batches = coarse(self._batches[-1])
        for at, batch in enumerate(batches):
            point = self._try((batch, streams))
            if point is None:
                continue
            speed = point.throughput_per_s or 0.0
            stalled = 0 if speed > best * (1 + LEAST_GAIN) else stalled + 1
            best = max(best, speed)
            if stalled >= _STALLS:
                for later in batches[at + 1 :]:
                    self._leave_out(
                        (later, streams), f"from batch {batches[at - _STALLS]} on nothing was gained"
                    )
                break
        return best

    def _climb(self, speed: Callable[[Point], float]) -> None:
        """Try the neighbours of the few best points, and theirs, as long as a step gains.

        Of several: where memory or latency cut the grid off, the best may lie beside the second best.
        """
        seen: set[Pair] = set()
        while True:
            ranked = sorted(self._points.values(), key=speed, reverse=True)
            least = speed(ranked[0]) * (1 - _PROMISING) if ranked else 0.0
            tops = [point.pair for point in ranked[:_STARTS] if speed(point) > 0 and speed(point) >= least]
            fresh = [pair for pair in tops if pair not in seen]
            if not fresh:
                return
            before = speed(ranked[0])
            for pair in fresh:
                for neighbour in self._neighbours(pair):
                    self._try(neighbour)
            gained = max(map(speed, self._points.values())) > before * (1 + LEAST_GAIN)
            if seen and not gained:
                return
            seen.update(fresh)

    def _neighbours(self, pair: Pair) -> list[Pair]:
        near = [
            [values[at] for at in range(max(0, here - 1), min(len(values), here + 2))]
            for values, here in (
                (self._batches, self._batches.index(pair[0])),
                (self._streams, self._streams.index(pair[1])),
            )
        ]
        return [(batch, streams) for streams in near[1] for batch in near[0]]

    def _break_ties(self, speed: Callable[[Point], float]) -> None:
        """Measure the best and what comes near it again, taking turns, until the best is one that lasted."""
        for _ in range(_TIE_BREAKS):
            best = self._best(speed)
            if best is None:
                return
            ranked = sorted(self._points.values(), key=speed, reverse=True)
            ties = [point.pair for point in ranked if speed(point) >= speed(best) * (1 - NEAR_TIE)]
            if len(ties) < 2 or set(ties[:_MOST_TIES]) <= self._measured_again:
                return
            self.again(ties[:_MOST_TIES], TIE_ROUNDS)

    def _best(self, speed: Callable[[Point], float]) -> Point | None:
        """Return the fastest point; of those within 1 % of it, the one with the fewest images in flight."""
        most = max(map(speed, self._points.values()), default=0.0)
        if most <= 0:
            return None
        even = [point for point in self._points.values() if speed(point) >= most * (1 - _EVEN)]
        return min(even, key=lambda point: (point.batch * point.streams, point.streams))

    def _fast(self, point: Point) -> float:
        return (point.throughput_per_s or 0.0) if self._fits(point) else 0.0

    def _quick(self, point: Point) -> float:
        bound = self._limits.latency_ms
        slow = bound is not None and (point.p99_ms is None or point.p99_ms > bound)
        return 0.0 if slow else self._fast(point)

    def _fits(self, point: Point) -> bool:
        limit = self._limits.memory_mb
        too_large = limit is not None and point.memory_mb is not None and point.memory_mb > limit
        return not point.refusal and not too_large

    def _try(self, pair: Pair) -> Point | None:
        """Measure a point unless it is known, or would not fit."""
        if pair in self._points:
            return self._points[pair]
        why = self._hopeless(pair)
        if why:
            self._leave_out(pair, why)
            return None
        (point,) = self._measure([pair], 1)
        self._points[pair] = point
        self._skipped.pop(pair, None)
        self._learn()
        return point

    def _leave_out(self, pair: Pair, why: str) -> None:
        self._skipped.setdefault(pair, why)

    def _hopeless(self, pair: Pair) -> str:
        batch, streams = pair
        for point in self._points.values():
            if point.batch <= batch and point.streams <= streams and (point.refusal or not self._fits(point)):
                why = "was refused" if point.refusal else "took too much memory"
                return f"batch {point.batch} with {point.streams} streams {why} already"
        limit, predicted = self._limits.memory_mb, self._predicted_mb(pair)
        if limit is not None and predicted is not None and predicted > limit:
            return f"would take {predicted:.0f} MB of {limit:.0f} MB by the memory model"
        return ""

    def _predicted_mb(self, pair: Pair) -> float | None:
        if self.memory is None:
            return None
        try:
            return self.memory.predict_mb(*pair) * (1 + (self.memory.error or 0.0))
        except DataError:
            return None

    def _learn(self) -> None:
        known = [(*point.pair, point.memory_mb) for point in self._points.values() if not point.refusal]
        try:
            self.memory = fit_memory([(b, s, memory) for b, s, memory in known if memory is not None])
        except DataError:  # not enough points yet
            self.memory = None
