"""Several sessions of one engine behind one queue: work comes in, every future ends, whatever happens to a session.

submit ──▶ Batcher ──▶ Worker (thread + session) ──▶ work.done
              ▲             │ hangs, dies
              └── Watchdog ─┘ replaced; its work is answered
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from vitesse.backends.protocol import Engine
from vitesse.errors import UsageError
from vitesse.serve.batching import Batcher, Counters
from vitesse.serve.crew import Crew
from vitesse.serve.health import Health, Observer, Unobserved
from vitesse.serve.watchdog import Watchdog
from vitesse.serve.work import Arrays, Work

_JOIN_S = 5.0


class Pool:
    """Workers with a session each, behind one bounded queue; an `Executor` and a context manager.

    The engine stays the caller's, who closes it after the pool.

    Args:
        engine: opens the sessions, each on its worker's own thread and one at a time.
        workers: sessions, at least 1.
        max_items: of a batch, at least 1; an engine whose batch is fixed at 1 gets no larger ones.
        max_wait_s: how long a request may wait for company, from its arrival.
        capacity: items that may wait; 0 = 8 × max_items × workers.
        hang_s: a run that takes longer is given up and its worker replaced; more than the slowest run ever takes.
            Warm-ups are not watched, as they compile and measure.
        clock: seconds, monotonic. observer: hears what happens.
        look_s: seconds between two looks at deadlines and workers.

    Raises:
        UsageError: `capacity` has no room for one batch.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        workers: int,
        max_items: int = 1,
        max_wait_s: float = 0.0,
        capacity: int = 0,
        hang_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        name: str = "vitesse-worker",
        look_s: float = 0.05,
    ) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers; expected at least 1")
        if any(info.shape and info.shape[0] == 1 for info in engine.inputs):
            max_items = 1
        room = capacity or 8 * max_items * workers
        if room < max_items:
            raise UsageError(
                f"--queue {capacity} beside batches of up to {max_items}",
                expected=f"{max_items} or more, room for one batch; 0 for {8 * max_items * workers}",
                fix=f"leave --queue out, or serve with --batch {capacity}",
            )
        self._look_s = look_s
        self._crew = Crew(
            engine,
            lambda answer: Batcher(max_items, max_wait_s, room, answer=answer),
            workers=workers,
            hang_s=hang_s,
            clock=clock,
            observer=observer or Unobserved(),
            name=name,
        )
        self._watchdog = Watchdog(self._crew.look, look_s, f"{name}-watchdog")

    def submit(self, work: Work) -> None:
        """Take work; `work.done` ends with `Executed` or a `Refusal` in any case.

        Raises:
            Refusal: 503 "queue_full" with Retry-After, "not_ready" once the pool is closing, "backend" where it is
                broken; 400 and 504 as `Batcher.offer`. The future has been ended with it.
        """
        self._crew.offer(work)

    def warm_up(self, feeds: Sequence[Arrays]) -> float:
        """Run feeds on every worker, in this order (largest first), and return the seconds of the slowest.

        Each runs twice: the first call of a shape allocates and captures, the second replays. Workers that replace
        others later warm up with the same feeds before they take work. What each request gets is not touched.

        Raises:
            BackendError, DataError, MemoryError: what a session raised, or that a worker has died; the pool goes on.
        """
        asked = self._crew.ask_to_warm_up(feeds)
        return max(warming.done.result() for warming in asked)

    @property
    def broken(self) -> str:
        """Why no worker can run anything in this process any more, as `health` says; "" = not broken."""
        return self._crew.broken

    def serves(self) -> bool:
        """Return whether it takes work and a worker runs it, as `health` says: quick enough for each request."""
        return self._crew.serves()

    def health(self) -> Health:
        """Return how the workers and the queue are: readiness and liveness are decided by it."""
        return self._crew.health()

    def counters(self) -> Counters:
        """Return a copy of what became of all work."""
        return self._crew.counters()

    def close(self, drain_s: float = 30.0) -> bool:
        """Take no more work, finish what was accepted, end the threads. Twice does no harm.

        Returns:
            True when all of it was finished within `drain_s` seconds of the clock and no thread is left. False when
            the rest was refused, or a run hangs: a thread may be in the engine then, which must not be closed.
        """
        finished, threads = self._crew.finish(drain_s, self._look_s)
        self._watchdog.stop()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)
        return finished and not self._crew.health().hanging and not any(t.is_alive() for t in threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
