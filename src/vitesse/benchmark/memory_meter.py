"""How much memory a point takes: on the host by the operating system, on a GPU by NVML or else by CUDA itself."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Protocol

from vitesse.backends.closing import Closing
from vitesse.errors import VitesseError


class Gauge(Protocol):
    """The memory of one processor or GPU in MB (1e6 bytes); `Sensor`s are gauges."""

    def own_mb(self) -> float:
        """Return the memory of this process."""
        ...

    def free_mb(self) -> float:
        """Return the memory nobody uses."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...


class CudaGauge(Closing):
    """What CUDA says of the whole GPU; own memory is what its use has grown by since this gauge was opened."""

    def __init__(self, device: int) -> None:
        # Imported here because only a GPU without NVML is asked this way.
        from vitesse.backends.cuda.bindings import cuda_driver

        self._driver = cuda_driver(device)
        self._before = self._used_mb()

    def own_mb(self) -> float:
        """Return the growth."""
        return max(0.0, self._used_mb() - self._before)

    def free_mb(self) -> float:
        """Return what is free on the whole GPU."""
        return self._driver.memory()[0] / 1e6

    def close(self) -> None:
        """Nothing is held."""

    def _used_mb(self) -> float:
        free, total = self._driver.memory()
        return (total - free) / 1e6


class MemoryMeter(Closing):
    """Memory on the host and, with a device number, on that GPU; a figure that cannot be had is None.

    Open it before the runtime: where a driver names no processes, what was in use before is taken for others'.
    """

    def __init__(self, device: int | None) -> None:
        self.device = device
        self._host = _first(_host)
        self._gpu = None if device is None else _first(lambda: _nvml(device), lambda: CudaGauge(device))

    def host_mb(self) -> float | None:
        """Return the resident memory of this process."""
        return None if self._host is None else self._host.own_mb()

    def device_mb(self) -> float | None:
        """Return this process's memory on the GPU; None without one."""
        return None if self._gpu is None else self._gpu.own_mb()

    def room_mb(self) -> float | None:
        """Return what this process may grow to where its batches lie, on the GPU or else the host: own and free."""
        gauge = self._host if self.device is None else self._gpu
        return None if gauge is None else gauge.own_mb() + gauge.free_mb()

    def close(self) -> None:
        """Let go of the drivers."""
        for gauge in (self._host, self._gpu):
            if gauge is not None:
                gauge.close()


def release_freed() -> None:
    """Give freed memory back to the system, so that the next reading does not count what the last point has freed."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others need not
        if trim is not None:
            trim(0)


def _host() -> Gauge:
    from vitesse.benchmark.processor import HostSensor

    return HostSensor()


def _nvml(device: int) -> Gauge:
    from vitesse.benchmark.nvml import GpuSensor

    return GpuSensor(device)


def _first(*openers: Callable[[], Gauge]) -> Gauge | None:
    for opener in openers:
        try:
            return opener()
        except (ImportError, VitesseError):
            continue
    return None
