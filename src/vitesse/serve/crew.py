"""The workers of a pool and whose hands each request is in: everything that one lock guards.

Futures are ended and the observer is told after the lock is released: their callbacks may submit to this pool or to
another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from vitesse.backends.protocol import Engine
from vitesse.errors import BackendError
from vitesse.serve.batching import Batch, Batcher, Counters, refuse
from vitesse.serve.health import Health, Observer, WorkerHealth
from vitesse.serve.held_lock import HeldLock
from vitesse.serve.refusals import Refusal
from vitesse.serve.watchdog import rest_s
from vitesse.serve.work import Arrays, Executed, Work
from vitesse.serve.workers import Abandoned, State, Warming, Worker

_LOG = logging.getLogger(__name__)
_RETRY = {"Retry-After": "1"}
# Runs may hang for once; when twice as many threads as there are workers hang, the device does.
_MOST_HANGING = 2


class Crew:
    """Hands out work to workers, takes it back from those that hang or die, replaces them. A `workers.Desk`.

    Args:
        batcher: made with the function that it is given here, which must be its `answer`.
        workers: how many. hang_s: after which a run is given up.
    """

    def __init__(
        self,
        engine: Engine,
        batcher: Callable[[Callable[[Work, Refusal], None]], Batcher],
        *,
        workers: int,
        hang_s: float,
        clock: Callable[[], float],
        observer: Observer,
        name: str,
    ) -> None:
        self.clock = clock
        self._engine, self._hang_s, self._observer, self._name = engine, hang_s, observer, name
        self._lock = threading.RLock()
        self._holding = HeldLock(self._lock, self._count_cancelled)
        self._work_came, self._work_done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._opening = threading.Lock()
        self._batcher = batcher(self._refuse_waiting)
        self._cancelled = 0
        self._feeds: tuple[Arrays, ...] = ()
        self._closing = self._stopped = self._cut_short = False
        self._broken = ""
        self._deaths = [0] * workers
        self._hanging: set[Worker] = set()
        self._workers: list[Worker] = []
        with self._holding:
            for index in range(workers):
                self._workers.append(self._started(index))

    # For the pool.

    def offer(self, work: Work) -> None:
        """Take work; raises Refusal, with which the future has been ended."""
        refusal: Refusal | None = None
        with self._holding:
            try:
                self._check_open(work)
                self._batcher.offer(work, self.clock())
            except Refusal as raised:
                refusal = raised
            self._work_came.notify()
        if refusal is not None:
            raise refusal

    def ask_to_warm_up(self, feeds: Sequence[Arrays]) -> list[Warming]:
        """Put feeds into every worker's inbox, and keep them for those that come later."""
        with self._holding:
            self._feeds = tuple(feeds)
            asked = [Warming(self._feeds) for _ in self._workers]
            for worker, warming in zip(self._workers, asked, strict=True):
                worker.inbox.append(warming)
                if worker.state is State.DEAD:
                    self._leave_inbox(worker)
            self._work_came.notify_all()
        return asked

    @property
    def broken(self) -> str:
        """Why nothing can run any more; "" = not broken."""
        return self._broken

    def serves(self) -> bool:
        """Return whether work is taken and a worker runs it; asked at each request, so without the lock."""
        at_work = any(worker.state in (State.IDLE, State.BUSY) for worker in self._workers)
        return at_work and not self._closing and not self._broken

    def health(self) -> Health:
        """Return how the workers and the queue are."""
        with self._lock:
            workers = (WorkerHealth(one.index, one.state.value, one.since, one.note) for one in self._workers)
            return Health(
                ready=self.serves(),
                broken=self._broken,
                workers=tuple(workers),
                depth=self._batcher.depth(),
                capacity=self._batcher.capacity,
                max_items=self._batcher.max_items,
                hanging=len(self._hanging),
            )

    def counters(self) -> Counters:
        """Return a copy of what became of all work."""
        with self._lock:
            return replace(self._batcher.counters)

    def look(self) -> None:
        """Answer what has expired, give up runs that hang, replace workers."""
        with self._holding:
            now = self.clock()
            self._batcher.drop(now)
            due = self._batcher.due_at(now)
            if due is not None and due <= now:
                self._work_came.notify()
            for worker in list(self._workers):
                if worker.state is State.BUSY and now - worker.since >= self._hang_s:
                    self._give_up(worker)
                rested = now - worker.since >= rest_s(self._deaths[worker.index])
                if worker.state is State.HUNG or (worker.state is State.DEAD and rested):
                    self._replace(worker)

    def finish(self, drain_s: float, look_s: float) -> tuple[bool, list[threading.Thread]]:
        """Take no more work, wait for what was accepted, end the workers.

        Returns whether all of it was finished, and the threads that end by themselves.
        """
        with self._holding:
            self._closing = True
            end = self.clock() + drain_s
            while self._unfinished() and not self._over() and self.clock() < end:
                self._work_done.wait(look_s)
            finished = not self._unfinished() and not self._over()
            if not finished:
                self._cut_short = True
                self._refuse_all(_stopping("its time to finish accepted work is over"))
            self._stopped = True
            self._work_came.notify_all()
            return finished, [worker.thread for worker in self._workers if finished]

    # For workers: `workers.Desk`.

    def opened(self, worker: Worker) -> Sequence[Arrays]:
        """Return what a new session is warmed up with."""
        with self._lock:
            self._check_own(worker)
            # Who asks for a warm-up before the session is open would get it twice.
            return () if worker.inbox else self._feeds

    def next_for(self, worker: Worker) -> Batch | Warming | None:
        """Wait for a batch or a warm-up; None = end."""
        while True:
            with self._holding:
                self._check_own(worker)
                found = self._find(worker)
                if found is not None or self._stopped:
                    return found
                # What `take` has dropped is answered first.
                if not self._holding.waiting:
                    now = self.clock()
                    due = self._batcher.due_at(now)
                    self._work_came.wait(None if due is None else max(0.0, due - now))

    def begin(self, worker: Worker) -> float:
        """Note that a run begins: a hang is counted from here."""
        with self._lock:
            self._check_own(worker)
            worker.since = self.clock()
            return worker.since

    def claim(self, worker: Worker, works: Sequence[Work]) -> None:
        """Take works out of a worker's hands, so that nobody else answers them."""
        with self._lock:
            self._check_own(worker)
            left = len(worker.hands) > len(works)
            worker.hands = [work for work in worker.hands if work not in works] if left else []

    def executed(self, worker: Worker, works: Sequence[Work], answers: Sequence[Executed]) -> None:
        """Take works out of a worker's hands, answer them and tell the observer."""
        one = answers[0]
        with self._holding:
            self.claim(worker, works)
            self._deaths[one.worker] = 0
            for work, answer in zip(works, answers, strict=True):
                self._holding.later(work.done.set_result, answer)
            queue_s = [answer.queue_s for answer in answers]
            self._holding.later(
                self._observer.batch_executed, one.batch, len(works), queue_s, one.infer_s, one.device_ms
            )

    def fail(self, works: Sequence[Work], refusal: Refusal) -> None:
        """Refuse works that were claimed."""
        with self._holding:
            self._refuse_running(works, refusal)

    def unfed(self, work: Work, error: Exception) -> None:
        """Answer work that was claimed with the error of making its feeds, which is no fault of the session."""
        with self._holding:
            self._holding.later(work.done.set_exception, error)
            self._holding.later(
                self._observer.refused, error.code if isinstance(error, Refusal) else "internal"
            )

    def limit(self) -> int:
        """Return how many items may run together; one number, read without the lock."""
        return self._batcher.max_items

    def halve(self, items: int) -> None:
        """Lower the batches to half of what memory did not suffice for."""
        with self._holding:
            before = self._batcher.max_items
            self._batcher.lower(items // 2)
            after = self._batcher.max_items
            if after < before:
                _LOG.warning("memory does not suffice for %d items at once: %d from now on", items, after)
                self._holding.later(self._observer.memory_halved, after)

    def lost_device(self, text: str) -> None:
        """Give everything up: the device answers no call of this process any more."""
        with self._holding:
            self._break(f"the GPU's context is lost: {text}")

    def ended(self, worker: Worker, error: BaseException | None) -> None:
        """Take note of a thread's end, and of the work and warm-ups it leaves behind."""
        with self._holding:
            self._hanging.discard(worker)
            if worker.state is not State.HUNG and not self._broken:
                worker.note = "" if error is None else f"{type(error).__name__}: {error}"
                self._mark(worker, State.DEAD)
            if error is not None:
                self._deaths[worker.index] += 1
                _LOG.error("worker %d died: %s", worker.index, worker.note)
            works, worker.hands = worker.hands, []
            text = f"worker {worker.index} died during the request: {worker.note}; another takes its place, try again"
            self._refuse_running(works, Refusal(503, "backend", text, _RETRY))
            self._leave_inbox(worker)
            self._work_done.notify_all()

    # What is done with the lock held.

    def _count_cancelled(self) -> None:
        """Tell the observer what was cancelled since it was told last; with the lock held."""
        for _ in range(self._batcher.counters.cancelled - self._cancelled):
            self._holding.later(self._observer.refused, "cancelled")
        self._cancelled = self._batcher.counters.cancelled

    def _mark(self, worker: Worker, state: State) -> None:
        worker.since = self.clock()
        if state is not worker.state:
            worker.state = state
            self._holding.later(self._observer.worker_changed, worker.index, state.value)

    def _started(self, index: int) -> Worker:
        worker = Worker(index, self, self._engine, self._opening, self._batcher.largest, self._name)
        worker.thread.start()
        self._holding.later(self._observer.worker_changed, index, worker.state.value)
        return worker

    def _check_open(self, work: Work) -> None:
        refusal = None
        if self._broken:
            refusal = _broken(self._broken)
        elif self._closing:
            refusal = _stopping("it takes no more work")
        if refusal is not None:
            self._refuse_waiting(work, refusal)
            raise refusal

    def _over(self) -> bool:
        return bool(self._broken) or self._cut_short

    def _check_own(self, worker: Worker) -> None:
        if self._over() or worker.state in (State.HUNG, State.DEAD):
            raise Abandoned(f"worker {worker.index} was given up")

    def _unfinished(self) -> bool:
        return self._batcher.depth() > 0 or any(worker.hands for worker in self._workers)

    def _find(self, worker: Worker) -> Batch | Warming | None:
        if worker.inbox:
            self._mark(worker, State.STARTING)
            return worker.inbox.popleft()
        worker.hands = []
        batch = self._batcher.take(self.clock())
        if batch is None:
            self._mark(worker, State.IDLE)
            self._work_done.notify_all()
            return None
        worker.hands = list(batch.works)
        self._mark(worker, State.BUSY)
        # What is left may become due while this worker is busy: another one has to watch the time. What waits for no
        # company was due when it came, and woke a worker then.
        if self._batcher.max_wait_s and self._batcher.depth():
            self._work_came.notify()
        return batch

    def _give_up(self, worker: Worker) -> None:
        """Leave a hung run to itself: answer its work and forget what it may still find."""
        text = f"the run did not end within {self._hang_s:g} s: its worker is replaced"
        _LOG.error("worker %d: %s", worker.index, text)
        works, worker.hands = worker.hands, []
        self._refuse_running(works, Refusal(504, "deadline", f"{text}; try again", _RETRY))
        self._leave_inbox(worker)
        self._mark(worker, State.HUNG)
        self._hanging.add(worker)
        most = _MOST_HANGING * len(self._workers)
        if len(self._hanging) > most:
            self._break(f"{len(self._hanging)} runs hang, more than {most}: the device does not answer")

    def _replace(self, worker: Worker) -> None:
        if not self._stopped and not self._over():
            self._workers[worker.index] = self._started(worker.index)

    def _break(self, text: str) -> None:
        if not self._broken:
            self._broken = text
            _LOG.critical("the pool can't run any more: %s", text)
            self._refuse_all(_broken(text))
            for worker in self._workers:
                worker.note = text
                self._mark(worker, State.DEAD)
                self._leave_inbox(worker)
            self._work_came.notify_all()
            self._work_done.notify_all()

    def _refuse_all(self, refusal: Refusal) -> None:
        self._batcher.abandon(refusal)
        for worker in self._workers:
            works, worker.hands = worker.hands, []
            self._refuse_running(works, refusal)

    def _refuse_waiting(self, work: Work, refusal: Refusal) -> None:
        self._holding.later(refuse, work, refusal)
        self._holding.later(self._observer.refused, refusal.code)

    def _refuse_running(self, works: Sequence[Work], refusal: Refusal) -> None:
        for work in works:
            # Each its own: an exception keeps the traceback of whoever raises it.
            self._holding.later(work.done.set_exception, replace(refusal))
            self._holding.later(self._observer.refused, refusal.code)

    def _leave_inbox(self, worker: Worker) -> None:
        while worker.inbox:
            warming = worker.inbox.popleft()
            text = f"worker {worker.index} ended before it was warm: {worker.note or 'the pool was closed'}"
            self._holding.later(warming.done.set_exception, BackendError(text))


def _broken(why: str) -> Refusal:
    return Refusal(503, "backend", f"{why}; the process has to be started again", _RETRY)


def _stopping(why: str) -> Refusal:
    return Refusal(503, "not_ready", f"the server is shutting down and {why}; ask another one", _RETRY)
