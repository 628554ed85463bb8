"""Times of calls that enqueue work on a GPU: interleaved rounds, CUDA events round every call, all samples kept.

Calls of a block follow one another without waiting, so that the time between two events is what the device needs, and
what the host needs where that is longer. Single calls with their wait, by the wall clock, are measured beside them. On
the CPU, where the program is tested, the wall clock does both.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch

BLOCK_MS, LEAST_CALLS, MOST_CALLS = 40.0, 3, 60
SINGLE_CALLS = 2
WARM_UP_CALLS, WARM_UP_S = 20, 3.0
LEAST_ROUNDS = 12
# Of a block by the wall clock that its events have to span; the rest is the launch of the first call and the wait.
LEAST_SHARE = 0.5


class Timed(Protocol):
    """Something to call again and again; `stream` is where its work is enqueued, None on the CPU."""

    stream: Any

    def call(self) -> None: ...


@dataclass
class Samples:
    """Milliseconds of one candidate: of calls in a row and of single calls with their wait, one list a round."""

    calls: list[list[float]] = field(default_factory=list)
    single: list[list[float]] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Medians over all samples, and the quartiles of the rounds' medians."""
        of_rounds = [statistics.median(block) for block in self.calls]
        low, _, high = statistics.quantiles(of_rounds, n=4) if len(of_rounds) > 1 else of_rounds * 3
        return {
            "ms": statistics.median(_all(self.calls)),
            "low_ms": low,
            "high_ms": high,
            "single_ms": statistics.median(_all(self.single)),
        }

    def to_json(self) -> dict[str, list[list[float]]]:
        """Everything, rounded to 0.1 µs."""
        return {
            "calls": [[round(ms, 4) for ms in block] for block in self.calls],
            "single": [[round(ms, 4) for ms in block] for block in self.single],
        }


def interleaved(candidates: Mapping[str, Timed], seconds: float) -> dict[str, Samples]:
    """Measure the candidates in turn, in rounds whose order rotates, until `seconds` and LEAST_ROUNDS are over."""
    counts = {name: _warmed(one) for name, one in candidates.items()}
    found = {name: Samples() for name in candidates}
    names, index, began = list(candidates), 0, time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        while names and (index < LEAST_ROUNDS or time.perf_counter() - began < seconds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                one = candidates[name]
                one.call()
                found[name].calls.append(in_a_row(one, counts[name]))
                found[name].single.append([single(one) for _ in range(SINGLE_CALLS)])
            index += 1
    finally:
        gc.enable()
    return found


def alone(one: Timed) -> float:
    """Median milliseconds of a block of calls of one candidate, with no other beside it."""
    return statistics.median(in_a_row(one, _warmed(one)))


def _warmed(one: Timed) -> int:
    """Call until warm; return how many calls fill a block."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_CALLS or (
        len(times) < WARM_UP_CALLS and time.perf_counter() - began < WARM_UP_S
    ):
        times.append(single(one))
    return max(LEAST_CALLS, min(MOST_CALLS, math.ceil(BLOCK_MS / statistics.median(times[-LEAST_CALLS:]))))


def in_a_row(one: Timed, count: int) -> list[float]:
    """Milliseconds of each of `count` calls, enqueued one behind the other.

    Raises:
        ValueError: the events span much less than the clock on the wall: the work went to another stream.
    """
    if one.stream is None:
        return [single(one) for _ in range(count)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    began = time.perf_counter_ns()
    events[0].record(one.stream)
    for event in events[1:]:
        one.call()
        event.record(one.stream)
    torch.cuda.synchronize()
    wall_ms = (time.perf_counter_ns() - began) / 1e6
    times = [before.elapsed_time(after) for before, after in pairwise(events)]
    check_enclosed(sum(times), wall_ms)
    return times


def check_enclosed(events_ms: float, wall_ms: float) -> None:
    """Raise ValueError where events span less than half of what a block took by the clock on the wall."""
    if events_ms < LEAST_SHARE * wall_ms:
        raise ValueError(
            f"CUDA events span {events_ms:.3f} ms of the {wall_ms:.3f} ms that the calls took: "
            "they do not enclose the work, which went to another stream"
        )


def single(one: Timed) -> float:
    """Milliseconds of one call with its wait, by the wall clock."""
    wait(one)
    began = time.perf_counter_ns()
    one.call()
    wait(one)
    return (time.perf_counter_ns() - began) / 1e6


def wait(one: Timed) -> None:
    if one.stream is not None:
        torch.cuda.synchronize()


def _all(blocks: list[list[float]]) -> list[float]:
    return [ms for block in blocks for ms in block]
