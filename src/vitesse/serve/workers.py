"""One session on one thread: takes batches, runs them, gives each request its own answer.

The thread opens its session, warms it up and closes it, because runtimes keep CUDA graphs and library handles for each
thread. What happens to the work of a worker that hangs or dies is decided by the pool, under its lock: a worker asks
before each run and before each answer whether the work is still its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from vitesse.backends.protocol import Engine, Session
from vitesse.errors import BackendError
from vitesse.serve.batching import Batch, expired
from vitesse.serve.faults import Fault, fault_of, refusal_of
from vitesse.serve.refusals import Refusal
from vitesse.serve.stacking import Stack, check_axis, parts, rejoin, split
from vitesse.serve.work import Arrays, Executed, Work


class State(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"  # opens its session or warms it up
    IDLE = "idle"
    BUSY = "busy"
    HUNG = "hung"  # given up; another one takes its place
    DEAD = "dead"  # its thread has ended


class Abandoned(Exception):
    """The pool has given this worker up and answered its work: what it still finds out concerns nobody."""


class SessionLost(Exception):
    """The session or the device is beyond use; the text says what the runtime said."""


@dataclass(eq=False)
class Warming:
    """Feeds to run before real work, and the seconds it took or the error, for the one who asked."""

    feeds: Sequence[Arrays]
    done: Future[float] = field(default_factory=Future)


class Desk(Protocol):
    """What a worker asks of its pool."""

    clock: Callable[[], float]

    def opened(self, worker: Worker) -> Sequence[Arrays]:
        """Say that the session is open; returns what to warm it up with."""
        ...

    def next_for(self, worker: Worker) -> Batch | Warming | None:
        """Wait for something to do; None = close the session and end."""
        ...

    def begin(self, worker: Worker) -> float:
        """Say that a run begins, and return the time; raises Abandoned."""
        ...

    def claim(self, worker: Worker, works: Sequence[Work]) -> None:
        """Take works out of the worker's hands in order to answer them; raises Abandoned."""
        ...

    def executed(self, worker: Worker, works: Sequence[Work], answers: Sequence[Executed]) -> None:
        """Claim works and answer them; raises Abandoned."""
        ...

    def fail(self, works: Sequence[Work], refusal: Refusal) -> None:
        """Refuse works that were claimed."""
        ...

    def unfed(self, work: Work, error: Exception) -> None:
        """Answer work that was claimed with the error of making its feeds."""
        ...

    def limit(self) -> int:
        """Return how many items may run together."""
        ...

    def halve(self, items: int) -> None:
        """Say that memory did not suffice for so many items."""
        ...

    def lost_device(self, text: str) -> None:
        """Say that the device answers nobody any more."""
        ...

    def ended(self, worker: Worker, error: BaseException | None) -> None:
        """Say that the thread ends, and with which error."""
        ...


class Worker:
    """A thread with a session. `start` it once; all fields but `index` belong to the pool and its lock.

    Args:
        index: its place in the pool, that a replacement takes over.
        desk: the pool. engine: whose session it opens; `opening` is held meanwhile, one session at a time.
        max_items: of a batch.
    """

    def __init__(
        self, index: int, desk: Desk, engine: Engine, opening: threading.Lock, max_items: int, name: str
    ) -> None:
        self.index = index
        self.state, self.since, self.note = State.STARTING, desk.clock(), ""
        self.hands: list[Work] = []
        self.inbox: deque[Warming] = deque()
        self._desk, self._engine, self._opening = desk, engine, opening
        self._stack = Stack(max_items)
        self._part = 0
        # A hung run must not keep the process from ending, hence a daemon.
        self.thread = threading.Thread(target=self._live, name=f"{name}-{index}", daemon=True)

    def _live(self) -> None:
        error: BaseException | None = None
        try:
            with self._opening:
                session = self._engine.session()
            with session:
                self._warm_up(session, self._desk.opened(self))
                self._serve(session)
        except Abandoned:
            pass
        except BaseException as raised:
            error = raised
        self._desk.ended(self, error)

    def _serve(self, session: Session) -> None:
        while (found := self._desk.next_for(self)) is not None:
            if isinstance(found, Batch):
                self._execute(session, found)
                continue
            start = self._desk.clock()
            try:
                self._warm_up(session, found.feeds)
            except Exception as error:
                found.done.set_exception(error)
            except BaseException as error:  # it ends the thread, and somebody waits for this answer
                text = f"worker {self.index} died during the warm-up: {type(error).__name__}: {error}"
                found.done.set_exception(BackendError(text))
                raise
            else:
                found.done.set_result(self._desk.clock() - start)

    def _warm_up(self, session: Session, feeds: Sequence[Arrays]) -> None:
        """Run each twice: the first call of a shape allocates, chooses kernels and captures, the second replays."""
        for one in feeds:
            for _ in range(2):
                session.run(one)

    def _execute(self, session: Session, batch: Batch) -> None:
        """Run a batch; after a failure smaller groups, down to the request that is the cause."""
        waiting = deque(_groups(batch.works, self._desk.limit()))
        while waiting:
            works = waiting.popleft()
            if not self._fed(works):
                continue
            try:
                self._run(session, works)
            except (Abandoned, SessionLost):
                raise
            except Exception as error:
                waiting.extendleft(reversed(self._in_time(self._after(works, error))))

    def _fed(self, works: Sequence[Work]) -> bool:
        """Make feeds that are still to be made; False where that has failed, or it is too late to run them."""
        work = works[0]
        if work.make is None:  # and so have the others: what is still to be made comes alone
            return True
        try:
            work.prepare(self._desk.clock)
        except Exception as error:
            self._desk.claim(self, works)
            self._desk.unfed(work, error)
            return False
        return bool(self._in_time([[work]]))

    def _run(self, session: Session, works: Sequence[Work]) -> None:
        items = sum(work.items for work in works)
        self._part = min(items, self._desk.limit()) if len(works) == 1 else items
        start = self._desk.begin(self)
        if self._part < items:
            outputs, device_ms = self._in_parts(session, works[0])
        else:
            outcome = session.run(self._stack.join(works))
            # Copies: the arrays are the session's, and its next run overwrites them.
            outputs, device_ms = split(outcome.outputs, [work.items for work in works]), outcome.device_ms
        infer_s = self._desk.clock() - start
        answers = [
            Executed(own, start - work.arrived - work.made_s, infer_s, items, self.index, device_ms)
            for work, own in zip(works, outputs, strict=True)
        ]
        self._desk.executed(self, works, answers)

    def _in_parts(self, session: Session, work: Work) -> tuple[list[Arrays], float | None]:
        """Run a request that is larger than what memory has turned out to hold."""
        pieces: list[Arrays] = []
        times: list[float | None] = []
        for feeds in parts(work.feeds, work.items, self._part):
            self._desk.begin(self)
            outcome = session.run(feeds)
            check_axis(outcome.outputs, len(next(iter(feeds.values()))))
            pieces += split(outcome.outputs, [work.items])
            times.append(outcome.device_ms)
        known = [one for one in times if one is not None]
        return [rejoin(pieces)], sum(known) if len(known) == len(times) else None

    def _after(self, works: Sequence[Work], error: Exception) -> list[list[Work]]:
        """Return the groups to run instead of one that failed; answers what can't be helped."""
        fault = fault_of(error)
        if fault is Fault.DEVICE:
            self._desk.lost_device(str(error))
            raise Abandoned from error
        if fault is Fault.SESSION:
            raise SessionLost(str(error)) from error
        if fault is Fault.MEMORY and self._part > 1:
            self._desk.halve(self._part)
            return _groups(works, self._part // 2)
        if len(works) > 1:
            return [[work] for work in works]
        self._desk.claim(self, works)
        self._desk.fail(works, refusal_of(error, fault))
        return []

    def _in_time(self, groups: list[list[Work]]) -> list[list[Work]]:
        """Answer what has expired while others were tried, and return the rest."""
        now = self._desk.clock()
        for work in [work for group in groups for work in group if work.deadline <= now]:
            self._desk.claim(self, [work])
            self._desk.fail([work], expired(work, now))
        kept = [[work for work in group if work.deadline > now] for group in groups]
        return [group for group in kept if group]


def _groups(works: Sequence[Work], size: int) -> list[list[Work]]:
    """Cut works into groups of at most `size` items, in order; a larger one is a group of its own."""
    groups: list[list[Work]] = []
    items = 0
    for work in works:
        if groups and items + work.items <= size:
            groups[-1].append(work)
            items += work.items
        else:
            groups.append([work])
            items = work.items
    return groups
