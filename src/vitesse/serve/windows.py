"""The last minute of a server in buckets of one second: latency quantiles, throughput, batches, sampled figures.

Latencies are counted in bins 2 % wide, so that a minute at any load takes a bounded memory and a quantile is within
1 % of the sample it stands for.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

_LEAST_S = 1e-5
_BINS_PER_E = 1 / math.log(1.02)


@dataclass(frozen=True)
class Figures:
    """What a span of seconds came to; None where nothing happened that could be measured.

    Args:
        p50_ms, p99_ms: of requests answered with 2xx; a refusal is quick and would flatter them.
        requests: answered, whatever the status; failed: with 5xx other than 503; refused: with 503.
        requests_per_s: answered with 2xx. items_per_s: images run. batch: items per execution, mean.
    """

    p50_ms: float | None
    p99_ms: float | None
    requests: int
    failed: int
    refused: int
    requests_per_s: float
    items_per_s: float
    batch: float | None


@dataclass
class _Second:
    number: int
    latencies: Counter[int] = field(default_factory=Counter)
    requests: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    items: int = 0
    executions: int = 0
    sampled: dict[str, float] = field(default_factory=dict)


class Windows:
    """Counts what happens into the present second; any thread may call.

    Args:
        clock: seconds, monotonic. seconds: how many whole ones are kept beside the present one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: int = 60) -> None:
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._began = int(clock())
        self._answered = 0
        self._kept: deque[_Second] = deque(maxlen=seconds + 1)

    @property
    def answered(self) -> int:
        """All requests since the beginning, whatever their status."""
        with self._lock:
            return self._answered

    def request(self, code: int, seconds: float) -> None:
        """Count an answer: its HTTP status, and the time from its arrival."""
        with self._lock:
            now = self._now()
            now.requests += 1
            self._answered += 1
            if 200 <= code < 300:
                now.answered += 1
                now.latencies[int(math.log(max(seconds, _LEAST_S) / _LEAST_S) * _BINS_PER_E)] += 1
            elif code == 503:
                now.refused += 1
            elif code >= 500:
                now.failed += 1

    def executed(self, items: int) -> None:
        """Count one execution of a session and the items in it."""
        with self._lock:
            now = self._now()
            now.executions += 1
            now.items += items

    def sampled(self, values: Mapping[str, float]) -> None:
        """Keep figures that are read and not counted, such as the queue's depth; the second's last reading stays."""
        with self._lock:
            self._now().sampled.update(values)

    def figures(self, seconds: int | None = None) -> Figures:
        """Sum the last whole seconds, at most as many as have passed since the beginning.

        In its first second a server has no whole one: the present one stands in.
        """
        with self._lock:
            present = int(self._clock())
            span = min(seconds or self.seconds, present - self._began)
            first = present - span
            chosen = [one for one in self._kept if first <= one.number < present or span == 0]
            return _figures(chosen, max(1, span))

    def series(self, names: Iterable[str] = ()) -> dict[str, list[float | None]]:
        """Return one value for each whole second, oldest first; None where nothing was measured.

        Args:
            names: of sampled figures, beside p50_ms, p99_ms, requests_per_s and batch.
        """
        with self._lock:
            present = int(self._clock())
            by_number = {one.number: one for one in self._kept}
            seconds = [by_number.get(number) for number in range(present - self.seconds, present)]
            singles = [_figures([] if one is None else [one], 1) for one in seconds]
            return {
                "p50_ms": [one.p50_ms for one in singles],
                "p99_ms": [one.p99_ms for one in singles],
                "requests_per_s": [one.requests_per_s for one in singles],
                "batch": [one.batch for one in singles],
                **{
                    name: [None if one is None else one.sampled.get(name) for one in seconds]
                    for name in names
                },
            }

    def _now(self) -> _Second:
        number = int(self._clock())
        if not self._kept or self._kept[-1].number != number:
            self._kept.append(_Second(number))
        return self._kept[-1]


def _figures(seconds: list[_Second], span: int) -> Figures:
    latencies: Counter[int] = Counter()
    for one in seconds:
        latencies.update(one.latencies)
    executions = sum(one.executions for one in seconds)
    items = sum(one.items for one in seconds)
    return Figures(
        p50_ms=_quantile_ms(latencies, 0.5),
        p99_ms=_quantile_ms(latencies, 0.99),
        requests=sum(one.requests for one in seconds),
        failed=sum(one.failed for one in seconds),
        refused=sum(one.refused for one in seconds),
        requests_per_s=sum(one.answered for one in seconds) / span,
        items_per_s=items / span,
        batch=items / executions if executions else None,
    )


def _quantile_ms(latencies: Counter[int], share: float) -> float | None:
    """Return the nearest-rank quantile: the middle of the bin that holds the sample of that rank."""
    rank = math.ceil(share * latencies.total())
    for number in sorted(latencies):
        rank -= latencies[number]
        if rank <= 0:
            return 1e3 * _LEAST_S * math.exp((number + 0.5) / _BINS_PER_E)
    return None
