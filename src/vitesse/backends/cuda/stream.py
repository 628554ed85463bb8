"""A stream, and timers by pairs of events on it."""

from __future__ import annotations

from contextlib import ExitStack

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.driver import CudaError, Driver


class Stream(Closing):
    """A queue of work on the device that owns its timers. One thread at a time.

    `synchronisations` counts the waits: what was enqueued before the count went up is done.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._handle: int | None = driver.create_stream()
        self._timers: list[Timer] = []
        self.synchronisations = 0

    @property
    def handle(self) -> int:
        """CUDA's handle; raises CudaError once the stream is closed."""
        if self._handle is None:
            raise CudaError("this stream is closed", expected="an open one", fix="Stream(driver)")
        return self._handle

    def synchronize(self) -> None:
        """Wait until everything enqueued is done; other Python threads go on meanwhile."""
        self._driver.synchronize(self.handle)
        self.synchronisations += 1

    def timer(self) -> Timer:
        """Return a timer on this stream; make it once and use it for every run."""
        made = Timer(self._driver, self)
        self._timers.append(made)
        return made

    def close(self) -> None:
        """Wait for the work, then destroy the stream and its timers, also where waiting raises."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        timers, self._timers = self._timers, []
        # Last in, first out; each is called also where another raised.
        with ExitStack() as leaving:
            leaving.callback(self._driver.destroy_stream, handle)
            for timer in timers:
                leaving.callback(timer.destroy)
            leaving.callback(self._driver.synchronize, handle)


class Timer:
    """Device time between two points of a stream. Its two events are made once and live as long as the stream.

    Begin and end outside of a graph capture: an event inside a CUDA graph has no time of its own.
    """

    def __init__(self, driver: Driver, stream: Stream) -> None:
        self._driver, self._stream = driver, stream
        self._begin, self._end = driver.create_event(), driver.create_event()
        self._ended = False

    def begin(self) -> None:
        """Mark the beginning."""
        self._ended = False
        self._driver.record(self._begin, self._stream.handle)

    def end(self) -> None:
        """Mark the end."""
        self._driver.record(self._end, self._stream.handle)
        self._ended = True

    def ms(self) -> float:
        """Return the milliseconds between `begin` and `end`, once the stream has been synchronised.

        Raises:
            CudaError: `end` was not called since `begin`, or the stream has not come to it.
        """
        if not self._ended:
            raise CudaError("the timer was not ended", expected="begin(), end(), synchronize(), ms()")
        return self._driver.elapsed_ms(self._begin, self._end)

    def destroy(self) -> None:
        """Destroy the events; the stream does this when it closes."""
        self._ended = False
        self._driver.destroy_event(self._begin)
        self._driver.destroy_event(self._end)
