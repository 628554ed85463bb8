"""Streams wait, time, and let go of what they own."""

from __future__ import annotations

import pytest

from backends.cuda.fake_driver import FakeDriver, Misuse
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.stream import Stream


def test_a_timer_times_what_lies_between_and_is_used_again(fake: FakeDriver) -> None:
    with Stream(fake) as stream:
        timer = stream.timer()
        made = fake.held()["events"]
        for works in (3, 1):
            fake.kernel(stream.handle, lambda: None)
            timer.begin()
            for _ in range(works):
                fake.kernel(stream.handle, lambda: None)
            timer.end()
            stream.synchronize()
            assert timer.ms() == works
        assert fake.held()["events"] == made == 2


def test_device_time_is_a_number_of_milliseconds(driver: Driver, stream: Stream) -> None:
    timer = stream.timer()
    timer.begin()
    timer.end()
    stream.synchronize()
    assert 0 <= timer.ms() < 1000


def test_a_timer_that_was_not_ended_says_so(stream: Stream) -> None:
    timer = stream.timer()
    with pytest.raises(CudaError, match=r"the timer was not ended\n  expected: begin\(\), end\(\), sync"):
        timer.ms()
    timer.begin()
    timer.end()
    stream.synchronize()
    timer.begin()
    with pytest.raises(CudaError, match="the timer was not ended"):
        timer.ms()


def test_reading_a_timer_before_waiting_is_an_error(fake: FakeDriver) -> None:
    with Stream(fake) as stream:
        timer = stream.timer()
        timer.begin()
        timer.end()
        with pytest.raises(CudaError) as refused:
            timer.ms()
        assert refused.value.code == "cudaErrorNotReady"


def test_closing_waits_and_destroys_the_timers(fake: FakeDriver) -> None:
    stream, ran = Stream(fake), []
    stream.timer()
    fake.kernel(stream.handle, lambda: ran.append(1))
    stream.close()
    stream.close()
    assert ran and not fake.held()
    with pytest.raises(CudaError, match="this stream is closed"):
        stream.synchronize()


def test_a_stream_that_fails_is_destroyed_all_the_same() -> None:
    fake = FakeDriver()
    stream = Stream(fake)
    stream.timer()

    def fault() -> None:
        raise CudaError("CUDA says a kernel failed", code="cudaErrorLaunchFailure")

    fake.kernel(stream.handle, fault)
    with pytest.raises(CudaError, match="a kernel failed"):
        stream.close()
    assert not fake.held()


def test_the_fake_finds_a_stream_destroyed_with_work_on_it() -> None:
    fake = FakeDriver()
    stream = fake.create_stream()
    fake.kernel(stream, lambda: None)
    with pytest.raises(Misuse, match="destroyed with work"):
        fake.destroy_stream(stream)
    with pytest.raises(AssertionError, match="streams"):
        fake.check_clean()
