"""How a pool is at one moment, and what it tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Observer(Protocol):
    """Hears what a pool does, from many threads; a call must be short."""

    def batch_executed(
        self, items: int, works: int, queue_s: list[float], infer_s: float, device_ms: float | None
    ) -> None:
        """One run: items and requests in it, seconds from each request's arrival, of the run, ms on the GPU."""
        ...

    def refused(self, reason: str) -> None:
        """One request was not executed, or failed: the code of its `Refusal`, or "cancelled"."""
        ...

    def worker_changed(self, worker: int, state: str) -> None:
        """A worker came into one of `workers.State`."""
        ...

    def memory_halved(self, max_items: int) -> None:
        """Memory did not suffice; batches have at most so many items from now on."""
        ...


class Unobserved:
    """An observer that nobody listens to."""

    def batch_executed(
        self, items: int, works: int, queue_s: list[float], infer_s: float, device_ms: float | None
    ) -> None:
        """Hear nothing."""

    def refused(self, reason: str) -> None:
        """Hear nothing."""

    def worker_changed(self, worker: int, state: str) -> None:
        """Hear nothing."""

    def memory_halved(self, max_items: int) -> None:
        """Hear nothing."""


@dataclass(frozen=True)
class WorkerHealth:
    """One worker: its `workers.State`, since when (seconds of the pool's clock), and why, where it is not well."""

    worker: int
    state: str
    since: float
    note: str = ""


@dataclass(frozen=True)
class Health:
    """A pool at one moment.

    Args:
        ready: it takes work, and at least one worker runs it.
        broken: why no worker can run anything in this process any more; "" = not broken. Liveness depends on it.
        depth, capacity: items that wait, and that may.
        max_items: of a batch, less than at the start where memory did not suffice.
        hanging: threads that hang in a run and were given up; the engine must not be closed while there are any.
    """

    ready: bool
    broken: str
    workers: tuple[WorkerHealth, ...]
    depth: int
    capacity: int
    max_items: int
    hanging: int
