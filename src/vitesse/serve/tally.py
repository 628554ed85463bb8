"""Counts for v2's statistics: how often each thing was done, and how long it took in all."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from vitesse.serve.protocol import Counters, Spent


class Tally:
    """Sums since the server's start; any thread may add.

    Args:
        wall: seconds since 1970, for the time of the last inference.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._batches: dict[int, list[float]] = {}
        self._items, self._last = 0, 0.0

    def request(self, ok: bool, seconds: float) -> None:
        """Count an answered request for inference."""
        self._add("success" if ok else "fail", 1, seconds)
        if ok:
            self._last = self._wall()

    def stage(self, name: str, seconds: float) -> None:
        """Count a request's `compute_input` or `compute_output`."""
        self._add(name, 1, seconds)

    def batch(self, items: int, queue_s: Sequence[float], infer_s: float) -> None:
        """Count one run of a session, with the seconds that each of its requests had waited."""
        self._add("queue", len(queue_s), sum(queue_s))
        self._add("compute_infer", len(queue_s), infer_s * len(queue_s))
        with self._lock:
            runs = self._batches.setdefault(items, [0, 0.0])
            runs[0] += 1
            runs[1] += infer_s
            self._items += items

    def counters(self) -> Counters:
        """Return all sums as they are now."""
        with self._lock:
            spent = {name: Spent(self._counts[name], seconds) for name, seconds in self._seconds.items()}
            batches = {size: Spent(int(runs), seconds) for size, (runs, seconds) in self._batches.items()}
            executions = sum(one.count for one in batches.values())
            return Counters(self._items, executions, self._last, batches=batches, **spent)

    def _add(self, name: str, count: int, seconds: float) -> None:
        with self._lock:
            self._counts[name] += count
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
