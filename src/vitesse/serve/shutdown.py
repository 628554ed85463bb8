"""From the first signal to the end of the process: drain, stop, and what a second signal does."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum


class Phase(StrEnum):
    """How far a server is on its way out."""

    SERVING = "serving"
    DRAINING = "draining"  # not ready, still answering: balancers look elsewhere meanwhile
    STOPPING = "stopping"  # no new connection; accepted work is finished
    FORCED = "forced"  # a second signal, or accepted work took longer than it may


class Shutdown:
    """Counts signals and time; holds no thread and no loop, so that a signal handler may call it.

    Args:
        drain_s: seconds from the first signal to closing the listener.
        stop_s: seconds for accepted work after that.
        clock: seconds, monotonic.
    """

    def __init__(self, drain_s: float, stop_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._drain_s, self._stop_s, self._clock = drain_s, stop_s, clock
        self._asked: float | None = None
        self._forced = False

    def signal(self) -> None:
        """Take a SIGTERM or SIGINT: the first begins to drain, a second one forces the end."""
        if self._asked is None:
            self._asked = self._clock()
        else:
            self._forced = True

    @property
    def phase(self) -> Phase:
        """Return the phase at this moment."""
        if self._forced:
            return Phase.FORCED
        if self._asked is None:
            return Phase.SERVING
        since = self._clock() - self._asked
        if since < self._drain_s:
            return Phase.DRAINING
        return Phase.STOPPING if since < self._drain_s + self._stop_s else Phase.FORCED

    @property
    def left_s(self) -> float:
        """Seconds until the end is forced; the whole time while nobody asked."""
        whole = self._drain_s + self._stop_s
        if self._forced:
            return 0.0
        return whole if self._asked is None else max(0.0, whole - (self._clock() - self._asked))
