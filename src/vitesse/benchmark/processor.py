"""What the operating system says about this process and the processor; the one module of a benchmark with psutil."""

from __future__ import annotations

from pathlib import Path

import psutil

from vitesse.backends.closing import Closing
from vitesse.benchmark.sensor import Reading


class HostSensor(Closing):
    """Reads this process's share of the processor and its memory.

    Counts of thermal throttling come from the kernel where the processor has them (Intel; not in virtual machines).
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call has no interval to look back on
        self._throttles = sorted(
            (root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
        )
        self._throttled = self._count()

    def read(self) -> Reading:
        """Return percent of one core, resident MB (1e6 bytes), and MHz where they are known."""
        values = {"cpu_percent": self._process.cpu_percent(), "memory_mb": self.own_mb()}
        frequency = psutil.cpu_freq()
        if frequency is not None and frequency.current > 0:
            values["cpu_mhz"] = float(frequency.current)
        count = self._count()
        slowed = ("processor thermal throttling",) if count > self._throttled else ()
        self._throttled = count
        return Reading(values, slowed, slowed)

    def own_mb(self) -> float:
        """Return the resident memory of this process."""
        return float(self._process.memory_info().rss) / 1e6

    def free_mb(self) -> float:
        """Return what the system can give without swapping."""
        return float(psutil.virtual_memory().available) / 1e6

    def close(self) -> None:
        """Nothing is held."""

    def _count(self) -> int:
        return sum(int(file.read_text()) for file in self._throttles)
