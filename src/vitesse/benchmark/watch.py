"""A thread that watches the machine while it is measured, so that a figure is published only if nothing slowed it.

Unknown is never clean: a watcher that could not start, died, or saw less than half of what it should have seen
marks the figures as unobserved.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from vitesse.benchmark.sensor import Reading, Sensor

CLEAN, THROTTLED, UNOBSERVED = "clean", "throttled", "unobserved"
_LEAST_SHARE = 0.5
# A driver that hangs must not hang the benchmark.
_PATIENCE_S = 5.0

Window = tuple[float, float]
Series = tuple[float, float, float]


@dataclass(frozen=True)
class Observed:
    """What was seen. `series`: figure → (min, median, max), the unit ends its name; `why` explains the verdict.

    `reasons`: what held clocks down or could have, and the share of the samples (0..1) that said so.
    """

    verdict: str
    why: str = ""
    samples: int = 0
    expected: int = 0
    series: Mapping[str, Series] = field(default_factory=dict)
    reasons: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rounded = {name: [round(value, 3) for value in three] for name, three in self.series.items()}
        return {**asdict(self), "series": rounded}


class Watch:
    """Samples sensors every `interval_s` seconds on a thread of its own, for as long as the `with` block lasts.

    Args:
        device: number of the GPU to watch besides the processor; None watches the processor alone.
        sensors: opens what is read instead, such as a test's fake.

    A sensor that cannot be opened raises nothing: everything is then unobserved, and `why` says it.
    """

    def __init__(
        self,
        device: int | None = None,
        interval_s: float = 0.1,
        *,
        sensors: Callable[[], Sequence[Sensor]] | None = None,
    ) -> None:
        self.interval_s = interval_s
        self._open = sensors or (lambda: sensors_of(device))
        self._samples: list[tuple[float, Reading]] = []
        self._failure, self._failed_at = "", 0.0
        self._done, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vitesse-watch", daemon=True)
        self._window: Window = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        # Loading a driver's library takes its time; what begins to run now is watched from its first moment.
        self._begun.wait(timeout=_PATIENCE_S)
        self._window = (time.perf_counter(), 0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=_PATIENCE_S)
        self._window = (self._window[0], time.perf_counter())

    def observed(self, windows: Sequence[Window] = ()) -> Observed:
        """Summarise what was seen inside some windows, in seconds of `time.perf_counter`; without any, all of it."""
        began, ended = self._window
        spans = list(windows) or [(began, ended or time.perf_counter())]
        samples = list(self._samples)
        seen = [reading for at, reading in samples if any(low <= at <= high for low, high in spans)]
        expected = max(1, int(sum(high - low for low, high in spans) / self.interval_s))
        if self._failure and self._failed_at <= max(high for _, high in spans):
            # What was seen before it died is shown, and is not the whole.
            return _summary(UNOBSERVED, f"the watcher stopped: {self._failure}", seen, expected)
        if len(seen) < _LEAST_SHARE * expected or not seen:
            why = f"{len(seen)} samples where {expected} were due"
            return _summary(UNOBSERVED, why, seen, expected)
        slowed = _shares(seen, lambda reading: reading.throttling)
        if slowed:
            return _summary(THROTTLED, ", ".join(slowed), seen, expected)
        if not all(reading.tells_throttling for reading in seen):
            why = "the driver does not say whether clocks were held down"
            return _summary(UNOBSERVED, why, seen, expected)
        return _summary(CLEAN, "", seen, expected)

    def _watch(self) -> None:
        sensors: Sequence[Sensor] = ()
        try:
            sensors = self._open()
            while not self._done.is_set():
                self._samples.append((time.perf_counter(), _together([one.read() for one in sensors])))
                self._begun.set()
                self._done.wait(self.interval_s)
        except BaseException as error:
            self._failed_at = time.perf_counter()
            self._failure = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
        finally:
            self._begun.set()
            for sensor in sensors:
                sensor.close()


def sensors_of(device: int | None) -> tuple[Sensor, ...]:
    """Open the processor's sensor and, with a device number, that GPU's; a missing package or driver raises."""
    # Imported here because a machine without psutil or an NVIDIA driver still benchmarks, unobserved.
    from vitesse.benchmark.processor import HostSensor

    if device is None:
        return (HostSensor(),)
    from vitesse.benchmark.nvml import GpuSensor

    return (HostSensor(), GpuSensor(device))


def _together(readings: Sequence[Reading]) -> Reading:
    return Reading(
        {name: value for reading in readings for name, value in reading.values.items()},
        tuple(reason for reading in readings for reason in reading.throttling),
        tuple(reason for reading in readings for reason in reading.reasons),
        all(reading.tells_throttling for reading in readings),
    )


def _shares(readings: Sequence[Reading], reasons: Callable[[Reading], Sequence[str]]) -> Mapping[str, float]:
    named = [name for reading in readings for name in reasons(reading)]
    return {name: named.count(name) / len(readings) for name in dict.fromkeys(named)}


def _summary(verdict: str, why: str, seen: Sequence[Reading], expected: int) -> Observed:
    names = dict.fromkeys(name for reading in seen for name in reading.values)
    series = {}
    for name in names:
        values = [reading.values[name] for reading in seen if name in reading.values]
        series[name] = (min(values), statistics.median(values), max(values))
    shares = {name: round(share, 4) for name, share in _shares(seen, lambda one: one.reasons).items()}
    return Observed(verdict, why, len(seen), expected, series, shares)
