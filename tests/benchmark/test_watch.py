"""Only a machine that was watched all the time and slowed by nothing is called clean."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vitesse.benchmark.sensor import Reading
from vitesse.benchmark.watch import CLEAN, THROTTLED, UNOBSERVED, Observed, Watch

INTERVAL_S = 0.01


@dataclass
class FakeSensor:
    """Returns what `at` makes of the number of the sample, or raises it."""

    at: Callable[[int], Reading]
    read_so_far: int = 0
    closed: int = 0

    def read(self) -> Reading:
        self.read_so_far += 1
        return self.at(self.read_so_far)

    def own_mb(self) -> float:
        return 1.0

    def free_mb(self) -> float:
        return 2.0

    def close(self) -> None:
        self.closed += 1


@dataclass
class Failing:
    """Reads well `good` times and then fails."""

    good: int
    seen: list[int] = field(default_factory=list)

    def __call__(self, turn: int) -> Reading:
        self.seen.append(turn)
        if turn > self.good:
            raise OSError("GPU is lost")
        return idle(turn)


def idle(turn: int) -> Reading:
    return Reading({"power_w": 100.0 + turn}, reasons=("application clocks",))


def watched(at: Callable[[int], Reading], seconds: float = 0.25) -> tuple[Observed, FakeSensor]:
    sensor = FakeSensor(at)
    with Watch(interval_s=INTERVAL_S, sensors=lambda: (sensor,)) as watch:
        time.sleep(seconds)
    return watch.observed(), sensor


def test_a_machine_that_nothing_slows_is_clean_and_its_series_are_kept() -> None:
    observed, sensor = watched(idle)
    assert (observed.verdict, observed.why) == (CLEAN, "")
    low, middle, high = observed.series["power_w"]
    assert low <= 102.0 and high == 100.0 + sensor.read_so_far and low < middle < high
    assert observed.reasons == {"application clocks": 1.0}
    assert sensor.closed == 1


def test_one_throttled_sample_is_enough_and_its_reason_is_named() -> None:
    def once(turn: int) -> Reading:
        return (
            Reading({}, ("hardware thermal slowdown",), ("hardware thermal slowdown",))
            if turn == 3
            else idle(turn)
        )

    observed, _ = watched(once)
    assert (observed.verdict, observed.why) == (THROTTLED, "hardware thermal slowdown")
    assert 0 < observed.reasons["hardware thermal slowdown"] < 1


def test_a_watcher_that_dies_in_the_middle_has_observed_nothing() -> None:
    observed, sensor = watched(Failing(good=5))
    assert observed.verdict == UNOBSERVED
    assert observed.why == "the watcher stopped: OSError: GPU is lost"
    assert 4 <= observed.samples <= 5 and sensor.closed == 1


def test_what_was_measured_before_the_watcher_died_was_observed() -> None:
    dying = Failing(good=20)
    with Watch(interval_s=INTERVAL_S, sensors=lambda: (FakeSensor(dying),)) as watch:
        began = time.perf_counter()
        time.sleep(0.08)
        early = (began, time.perf_counter())
        while len(dying.seen) < 21:
            time.sleep(INTERVAL_S)
        time.sleep(0.05)
        late = (early[1], time.perf_counter())
    assert watch.observed([early]).verdict == CLEAN
    assert watch.observed([late]).verdict == UNOBSERVED
    assert watch.observed([early, late]).verdict == UNOBSERVED


def test_a_watcher_that_never_starts_is_said_and_raises_nothing() -> None:
    def absent() -> tuple[FakeSensor, ...]:
        raise ModuleNotFoundError("No module named 'pynvml'")

    with Watch(sensors=absent) as watch:
        time.sleep(0.02)
    assert watch.observed().verdict == UNOBSERVED
    assert "No module named 'pynvml'" in watch.observed().why


def test_fewer_than_half_of_the_samples_are_not_enough() -> None:
    def slow(turn: int) -> Reading:
        time.sleep(0.1)  # ten times the interval: a driver that answers late
        return idle(turn)

    observed, _ = watched(slow, 0.4)
    assert observed.verdict == UNOBSERVED
    assert "samples where" in observed.why and 0 < observed.samples < observed.expected / 2


def test_a_window_without_samples_is_unobserved_although_the_watcher_lives() -> None:
    with Watch(interval_s=0.2, sensors=lambda: (FakeSensor(idle),)) as watch:
        time.sleep(0.05)
        window = (time.perf_counter(), time.perf_counter() + 0.01)
        time.sleep(0.05)
    assert watch.observed([window]).verdict == UNOBSERVED


def test_a_driver_that_tells_no_reasons_leaves_the_run_unobserved() -> None:
    observed, _ = watched(lambda turn: Reading({"power_w": 1.0}, tells_throttling=False))
    assert observed.verdict == UNOBSERVED
    assert "does not say whether clocks were held down" in observed.why


def test_only_what_lies_inside_the_windows_counts() -> None:
    hot = {"now": False}

    def heated(turn: int) -> Reading:
        return Reading({}, ("software power cap",)) if hot["now"] else idle(turn)

    with Watch(interval_s=INTERVAL_S, sensors=lambda: (FakeSensor(heated),)) as watch:
        cool = (time.perf_counter(), time.perf_counter() + 0.1)
        time.sleep(0.12)
        hot["now"] = True
        warm = (time.perf_counter(), time.perf_counter() + 0.1)
        time.sleep(0.12)
    assert watch.observed([cool]).verdict == CLEAN
    assert watch.observed([warm]).verdict == THROTTLED
    assert watch.observed([warm]).why == "software power cap"


def test_this_processor_is_watched_with_psutil() -> None:
    pytest.importorskip("psutil", reason="needs psutil: pip install 'vitesse[optimize]'")
    with Watch() as watch:
        until = time.perf_counter() + 1.0
        while time.perf_counter() < until:
            zlib.crc32(
                bytes(10_000_000)
            )  # work that leaves the interpreter to other threads, as a runtime's does
    observed = watch.observed()
    assert observed.verdict == CLEAN
    assert observed.series["memory_mb"][0] > 10
    assert observed.series["cpu_percent"][2] > 5
    assert set(observed.to_json()) >= {"verdict", "series", "reasons", "samples", "expected"}
