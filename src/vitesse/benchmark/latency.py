"""Latency of one call, candidates interleaved A B A B, so that drift of the machine hits all of them.

The protocol (docs/benchmarking.md says why):

* every session is warmed up until its rolling median stands still, or a bound is met;
* a round gives every session one block of back-to-back calls on the same feeds, so that caches are as warm as
  in steady use; the order inside a round rotates, so that no session always follows the same neighbour;
* before each block we wait until no thread of this process is spinning any more, and the first calls of a
  block are made but not counted;
* the comparison is the median of the per-round ratios with a distribution-free confidence interval.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitesse.backends.protocol import Session, Tensors
from vitesse.benchmark.quiet import ForeignLoad, settle
from vitesse.errors import DataError
from vitesse.ledger import Latency

_BLOCK_MS = 50.0
_MOST_CALLS = 100
_LEAD_IN_BELOW_MS = 50.0
_STABLE_WITHIN = 0.05
_CONFIDENCE = 0.95
_QUIET_CORES = 0.1


@dataclass(frozen=True)
class WarmUp:
    """Calls made before measuring; whether the last two windows' medians agreed within 5 %; the last one."""

    calls: int
    stable: bool
    median_ms: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second of two sessions is: per-round medians, first over second.

    `value` is the median over rounds, `spread` its interquartile range, `interval` the confidence interval of
    the median (order statistics of the binomial, at least 95 %; (0, inf) where the rounds are too few).
    """

    value: float
    spread: tuple[float, float]
    interval: tuple[float, float]
    rounds: int

    @property
    def faster(self) -> bool:
        """Whether the second session is faster beyond noise."""
        return self.interval[0] > 1.0

    @property
    def slower(self) -> bool:
        """Whether the second session is slower beyond noise."""
        return self.interval[1] < 1.0


@dataclass(frozen=True)
class Interleaved:
    """All samples of one interleaved run.

    `rounds`: name → one tuple of call times in milliseconds per round. `foreign_cores`: average number of
    cores that other processes kept busy meanwhile, None where unknown. `settled`: share of blocks that began
    with idle threads.
    """

    rounds: Mapping[str, tuple[tuple[float, ...], ...]]
    warm_up: Mapping[str, WarmUp]
    seconds: float
    foreign_cores: float | None
    settled: float

    @property
    def quiet(self) -> bool | None:
        """Whether others took less than a tenth of a core meanwhile; None where unknown.

        On a busy machine ratios between different numbers of threads say more about the neighbours than the model.
        """
        return None if self.foreign_cores is None else self.foreign_cores < _QUIET_CORES

    def samples(self, name: str) -> tuple[float, ...]:
        """Return the counted call times of one session in milliseconds, in order."""
        return tuple(sample for block in self.rounds[name] for sample in block)

    def latency(self, name: str) -> Latency:
        """Return quantiles and mean of one session."""
        return latency_of(self.samples(name))

    def ratio(self, baseline: str, candidate: str) -> Ratio:
        """Return time of `baseline` over time of `candidate`: above 1, the candidate is faster."""
        pairs = zip(self.rounds[baseline], self.rounds[candidate], strict=True)
        return ratio_of([statistics.median(a) / statistics.median(b) for a, b in pairs])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, for the raw results of a run (times rounded to nanoseconds)."""
        return {
            "unit": "ms",
            "rounds": {
                name: [[round(ms, 6) for ms in block] for block in blocks]
                for name, blocks in self.rounds.items()
            },
            "warm_up": {
                name: {"calls": done.calls, "stable": done.stable, "median_ms": round(done.median_ms, 6)}
                for name, done in self.warm_up.items()
            },
            "seconds": round(self.seconds, 3),
            "foreign_cores": None if self.foreign_cores is None else round(self.foreign_cores, 3),
            "settled": round(self.settled, 3),
        }


def latency_of(samples: Sequence[float]) -> Latency:
    """Return p50, p90, p99 (linear interpolation) and mean of call times in milliseconds."""
    p50, p90, p99 = (float(value) for value in np.percentile(samples, (50, 90, 99)))
    return Latency(p50, p90, p99, float(np.mean(samples)), len(samples))


def ratio_of(per_round: Sequence[float]) -> Ratio:
    """Summarise per-round ratios; the interval takes no distribution for granted (sign test inverted).

    With n rounds the k-th smallest and k-th largest ratios enclose the median with probability
    1 − 2·P(Binomial(n, ½) < k); k is the largest with at least 95 %.
    """
    ordered = sorted(per_round)
    count = len(ordered)
    rank, tail = 0, 0.0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if 2 * tail > 1 - _CONFIDENCE:
            break
        rank += 1
    interval = (ordered[rank - 1], ordered[-rank]) if rank else (0.0, math.inf)
    low, middle, high = (float(value) for value in np.percentile(ordered, (25, 50, 75)))
    return Ratio(middle, (low, high), interval, count)


def warm_up(
    session: Session, feeds: Sequence[Tensors], *, limit_s: float = 5.0, most_calls: int = 100
) -> WarmUp:
    """Call until two windows in a row have medians within 5 %, or `limit_s` or `most_calls` is used up.

    A window is five calls, two where a call takes longer than 200 ms. At least three calls are made.
    """
    times: list[float] = []
    began = time.perf_counter()
    while True:
        times.append(session.run(feeds[len(times) % len(feeds)]).host_ms)
        window = 2 if times[-1] > 200 else 5
        last = statistics.median(times[-window:])
        stable = False
        if len(times) >= 2 * window:
            before = statistics.median(times[-2 * window : -window])
            stable = abs(last - before) <= _STABLE_WITHIN * before
        used_up = time.perf_counter() - began > limit_s or len(times) >= most_calls
        if stable or (used_up and len(times) >= 3):
            return WarmUp(len(times), stable, last)


def interleave(
    sessions: Mapping[str, Session],
    feeds: Sequence[Tensors] | Mapping[str, Sequence[Tensors]],
    *,
    seconds: float = 10.0,
    min_rounds: int = 12,
    on_progress: Callable[[float], None] | None = None,
) -> Interleaved:
    """Measure sessions against one another.

    Rounds go on until `seconds` are over and `min_rounds` are done. Every session runs the same feeds in the
    same order in a round. `on_progress` gets the share done, 0..1, after each round.

    Args:
        feeds: for all sessions; or by session, where they take the same images in another size.

    Raises:
        DataError: no feeds, or not as many for one session as for another.
        BackendError: a session refuses to run.
    """
    fed = dict(feeds) if isinstance(feeds, Mapping) else dict.fromkeys(sessions, feeds)
    count = min(map(len, fed.values()))
    if not count:
        raise DataError("there is nothing to feed the model", expected="at least one image")
    if count != max(map(len, fed.values())):
        raise DataError(
            f"feeds of different number: { {name: len(some) for name, some in fed.items()} }",
            expected="the same images for every session",
        )
    warmed = {name: warm_up(session, fed[name]) for name, session in sessions.items()}
    fastest = min(done.median_ms for done in warmed.values())
    calls = max(1, min(_MOST_CALLS, math.ceil(_BLOCK_MS / fastest)))
    lead_in = 1 if fastest < _LEAD_IN_BELOW_MS else 0
    names = list(sessions)
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    settled: list[bool] = []
    watch, began = ForeignLoad(), time.perf_counter()
    index = 0
    while index < min_rounds or time.perf_counter() - began < seconds:
        chosen = [(index * calls + offset) % count for offset in range(calls)]
        for name in names[index % len(names) :] + names[: index % len(names)]:
            settled.append(settle())
            block = [fed[name][image] for image in chosen]
            rounds[name].append(_block(sessions[name], block, lead_in))
        index += 1
        if on_progress is not None:
            spent = (time.perf_counter() - began) / seconds if seconds > 0 else 1.0
            on_progress(min(1.0, spent, index / max(1, min_rounds)))
    return Interleaved(
        {name: tuple(blocks) for name, blocks in rounds.items()},
        warmed,
        time.perf_counter() - began,
        watch.cores(),
        sum(settled) / len(settled),
    )


def _block(session: Session, feeds: Sequence[Tensors], lead_in: int) -> tuple[float, ...]:
    with _no_garbage_collection():
        for _ in range(lead_in):
            session.run(feeds[0])
        return tuple(session.run(one).host_ms for one in feeds)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector from running inside a block; reference counting still frees each call's arrays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
