"""Throughput counts what a window holds, with slow calls and with several sessions."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest

from vitesse.backends.closing import Closing
from vitesse.backends.protocol import Outcome, Tensors
from vitesse.benchmark.load import Call, Load, saturate
from vitesse.errors import BackendError


@dataclass
class Sleeping(Closing):
    """A session whose calls take `seconds`; the `fails`-th raises."""

    seconds: float
    fails: int = 0
    runs: int = 0

    def run(self, feeds: Tensors) -> Outcome:
        self.runs += 1
        if self.runs == self.fails:
            raise BackendError("device lost")
        time.sleep(self.seconds)
        return Outcome({}, 1e3 * self.seconds, 0.5e3 * self.seconds)

    def close(self) -> None: ...


def test_a_call_that_the_window_cuts_counts_by_its_share() -> None:
    calls = (Call(0.0, 0.4, 8, 400, None), Call(0.4, 0.8, 8, 400, None), Call(0.8, 1.2, 8, 400, None))
    assert Load(calls, 1.0, began=5.0).images_per_s == pytest.approx(20.0)
    assert Load(calls, 1.0, began=5.0).window == (5.0, 6.0)


def test_a_call_after_the_window_does_not_count() -> None:
    calls = (Call(0.0, 0.5, 4, 500, None), Call(1.1, 1.5, 100, 400, None))
    assert Load(calls, 1.0, began=0.0).images_per_s == pytest.approx(4.0)


def test_slow_calls_are_waited_for_until_every_session_has_made_enough() -> None:
    sessions = [Sleeping(0.05), Sleeping(0.08)]
    load = saturate(sessions, [{}], [2], 0.01, least_calls=2)
    assert min(session.runs for session in sessions) == 2
    assert load.seconds >= 0.16
    # 2 images every 50 ms and 2 every 80 ms: counting calls that ended in 10 ms would have given nothing.
    assert load.images_per_s <= 2 / 0.05 + 2 / 0.08 and load.images_per_s > 0.5 * (2 / 0.05 + 2 / 0.08)


def test_sessions_run_on_threads_of_their_own() -> None:
    together = threading.Barrier(3, timeout=10)

    class Meeting(Sleeping):
        def run(self, feeds: Tensors) -> Outcome:
            if self.runs == 0:
                together.wait()  # returns only if three threads are inside at once
            return super().run(feeds)

    load = saturate([Meeting(0.0) for _ in range(3)], [{}], [1], 0.0, least_calls=1)
    assert len(load.calls) >= 3


def test_what_a_session_raises_ends_the_load() -> None:
    with pytest.raises(BackendError, match="device lost"):
        saturate([Sleeping(0.001), Sleeping(0.001, fails=3)], [{}], [1], 60.0)


def test_the_times_of_the_session_are_kept() -> None:
    load = saturate([Sleeping(0.002)], [{}], [1], 0.0, least_calls=3)
    assert {(call.host_ms, call.device_ms) for call in load.calls} == {(2.0, 1.0)}
