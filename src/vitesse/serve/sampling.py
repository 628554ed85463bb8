"""One thread that reads the processor's and the GPU's sensors each second, for gauges, dashboard and alerts.

A sensor that fails is said, left out and opened again later: a server goes on without figures of its machine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vitesse.backends.closing import Closing
from vitesse.benchmark.processor import HostSensor
from vitesse.benchmark.sensor import Reading, Sensor
from vitesse.serve.logs import NAME

_LOG = logging.getLogger(NAME)
PROCESSOR, GPU = "processor", "GPU"
_REOPEN_S = 30.0
# A driver that hangs must not hang a shutdown.
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Sample:
    """What the sensors said at one time.

    Args:
        at: seconds of the sampler's clock.
        values: figure → value, the unit ends its name (see `benchmark.sensor.Reading`); of a GPU also
            `gpu_memory_total_mb` and `gpu_memory_own_mb`, this process's share.
        throttling: why clocks were held down. missing: sensor → why it says nothing.
    """

    at: float
    values: Mapping[str, float] = field(default_factory=dict)
    throttling: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


class Sampler(Closing):
    """Reads sensors on a thread of its own from `start` to `close`, and tells each sample.

    Args:
        tell: gets every sample, on the sampler's thread. An error in it ends no sampling: it goes to `failed`.
        device: number of the GPU to read besides the processor, None where there is none.
        interval_s: between samples. clock: seconds, monotonic.
        sensors: name → opens it, instead of the machine's own.
        failed: gets the errors of `tell`; they are logged.
    """

    def __init__(
        self,
        tell: Callable[[Sample], None],
        *,
        device: int | None = None,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sensors: Mapping[str, Callable[[], Sensor]] | None = None,
        failed: Callable[[Exception], None] = lambda error: _LOG.error(
            "sampling the machine failed: %r", error
        ),
    ) -> None:
        self._tell, self._failed = tell, failed
        self._interval_s, self._clock = interval_s, clock
        self._openers = dict(sensors if sensors is not None else openers_for(device))
        self._open: dict[str, Sensor] = {}
        self._missing: dict[str, tuple[str, float]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitesse-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample; the first sample is told at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop and let go of the sensors; a sensor that hangs is left behind."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_PATIENCE_S)

    def sample(self) -> Sample:
        """Read every sensor once, on the caller's thread."""
        now = self._clock()
        values: dict[str, float] = {}
        throttling: tuple[str, ...] = ()
        for name in self._openers:
            reading = self._read(name, now)
            if reading is not None:
                values.update(reading.values)
                throttling += reading.throttling
        return Sample(now, values, throttling, {name: why for name, (why, _) in self._missing.items()})

    def _run(self) -> None:
        try:
            while not self._done.is_set():
                try:
                    self._tell(self.sample())
                except Exception as error:
                    self._failed(error)
                self._done.wait(self._interval_s)
        finally:
            for name in tuple(self._open):
                self._let_go(name)

    def _read(self, name: str, now: float) -> Reading | None:
        if name not in self._open and name in self._missing and now - self._missing[name][1] < _REOPEN_S:
            return None
        try:
            if name not in self._open:
                self._open[name] = self._openers[name]()
            reading = _with_memory(self._open[name])
        except Exception as error:
            self._missing[name] = (getattr(error, "what", "") or f"{type(error).__name__}: {error}", now)
            self._let_go(name)
            return None
        self._missing.pop(name, None)
        return reading

    def _let_go(self, name: str) -> None:
        sensor = self._open.pop(name, None)
        if sensor is not None:
            try:
                sensor.close()
            except Exception as error:
                self._failed(error)


def openers_for(device: int | None) -> Mapping[str, Callable[[], Sensor]]:
    """Return what opens the processor's sensor and, with a device number, that GPU's."""

    def gpu(number: int) -> Sensor:
        # Imported here because a server without nvidia-ml-py still serves, its GPU unobserved.
        from vitesse.benchmark.nvml import GpuSensor

        return GpuSensor(number)

    if device is None:
        return {PROCESSOR: HostSensor}
    return {PROCESSOR: HostSensor, GPU: lambda: gpu(device)}


def _with_memory(sensor: Sensor) -> Reading:
    """Return a reading; for a GPU with its whole memory and this process's share of it."""
    reading = sensor.read()
    used = reading.values.get("gpu_memory_mb")
    if used is None:
        return reading
    memory = {"gpu_memory_total_mb": used + sensor.free_mb(), "gpu_memory_own_mb": sensor.own_mb()}
    return Reading(
        {**reading.values, **memory}, reading.throttling, reading.reasons, reading.tells_throttling
    )
