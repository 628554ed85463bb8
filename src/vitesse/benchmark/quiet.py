"""Waiting until our own threads are idle, and how much of the processor other work took meanwhile.

A runtime's worker threads may go on spinning after a call, waiting for the next one. With few cores they take
the core from whatever is measured next, so that the next block must not begin before they sleep.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# Two ticks of the slowest common kernel clock (100 Hz): a shorter window may not see another thread's time.
_WINDOW_S = 0.02
_IDLE_SHARE = 0.1


def settle(limit_s: float = 0.5) -> bool:
    """Sleep until this process uses less than a tenth of a core; False if it still does after `limit_s`."""
    deadline = time.perf_counter() + limit_s
    while time.perf_counter() < deadline:
        used, wall = time.process_time(), time.perf_counter()
        time.sleep(_WINDOW_S)
        if time.process_time() - used < _IDLE_SHARE * (time.perf_counter() - wall):
            return True
    return False


class ForeignLoad:
    """Counts the cores that others kept busy since it was made: other processes and, in a guest, stolen time.

    Looks only at the processors this process may use. Linux only: elsewhere, or where /proc/stat cannot be
    read, `cores()` is None.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._wall, self._own, self._busy = time.perf_counter(), time.process_time(), self._busy_s()

    def cores(self) -> float | None:
        """Return the average number of cores busy with other work, at least 0."""
        busy = self._busy_s()
        if busy is None or self._busy is None:
            return None
        wall = time.perf_counter() - self._wall
        own = time.process_time() - self._own
        return max(0.0, (busy - self._busy - own) / wall) if wall > 0 else None

    def _busy_s(self) -> float | None:
        try:
            lines = self._stat.read_text().splitlines()
            ours = {f"cpu{index}" for index in os.sched_getaffinity(0)}
            ticks = os.sysconf("SC_CLK_TCK")
            rows = [line.split() for line in lines]
            # user nice system idle iowait irq softirq steal; guest time is already inside user
            spent = [[int(value) for value in row[1:9]] for row in rows if row and row[0] in ours]
            return sum(sum(row[:3]) + sum(row[5:8]) for row in spent) / ticks
        except (OSError, AttributeError, ValueError):
            return None
