"""Which waiting work runs next, and together with what: a queue without threads and without a clock of its own.

offer(work, now) ──▶ one line of waiting work for each key ──▶ take(now) ──▶ Batch
                     due_at(now): when it is worth asking again

The caller brings the time and one lock around all calls. A future is ended through `answer`, so that a caller can
do that after it has released its lock.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Key, Work


@dataclass(frozen=True)
class Batch:
    """Work of one key that runs together, oldest first. Its futures are running: they can't be cancelled any more."""

    works: tuple[Work, ...]
    key: Key
    items: int


@dataclass
class Counters:
    """What became of all work since the start; `offered` is the sum of the others and of what still waits."""

    offered: int = 0
    taken: int = 0
    full: int = 0
    invalid: int = 0
    expired: int = 0
    cancelled: int = 0
    abandoned: int = 0


@dataclass(order=True)
class _Waiting:
    """Work in line, by the request's arrival and then by the order of offering."""

    arrived: float
    number: int
    work: Work = field(compare=False)
    items: int = field(compare=False)


def refuse(work: Work, refusal: Refusal) -> None:
    """End work that is not running yet with a refusal; a cancelled future stays cancelled."""
    if work.done.set_running_or_notify_cancel():
        work.done.set_exception(refusal)


class Batcher:
    """Gathers work of equal keys until a batch is full or the oldest request has waited long enough.

    A batch is due when it is full, or at `oldest arrival + max_wait_s`. Of several lines that are due, the one whose
    oldest request arrived first goes first, so that none starves. Work that has expired or was cancelled leaves
    without being executed. Not thread-safe.

    Args:
        max_items: items on the first axis of one batch, at least 1.
        max_wait_s: seconds that a request may wait for company, counted from its arrival; 0 = none.
        capacity: items that may wait, at least `max_items`.
        answer: ends a future that was not executed.
        retry_after_s: seconds after which a client that found the queue full should try again.

    Attributes:
        max_items: as given, or less after `lower`.
        largest: the most items that one request may bring: `max_items` as given.
        counters: what became of all work.
    """

    def __init__(
        self,
        max_items: int,
        max_wait_s: float,
        capacity: int,
        *,
        answer: Callable[[Work, Refusal], None] = refuse,
        retry_after_s: float = 1.0,
    ) -> None:
        if max_items < 1 or not 0 <= max_wait_s < math.inf or capacity < max_items:
            raise ValueError(
                f"max_items {max_items}, max_wait_s {max_wait_s:g}, capacity {capacity}; expected max_items of at "
                "least 1, a finite wait of at least 0 s, and room for one batch"
            )
        self.max_items = self.largest = max_items
        self.max_wait_s, self.capacity = max_wait_s, capacity
        self.counters = Counters()
        self._answer, self._retry_after_s = answer, retry_after_s
        self._lines: dict[Key, list[_Waiting]] = {}
        self._items = 0

    def depth(self) -> int:
        """Return how many items wait."""
        return self._items

    def offer(self, work: Work, now: float) -> None:
        """Put work in line.

        Raises:
            Refusal: 400 for feeds without a common first axis of 1 to `largest` items, 503 "queue_full" with
                Retry-After, 504 for work that came after its deadline. The future is ended with it as well.
        """
        self.counters.offered += 1
        try:
            items = items_of(work, self.largest)
        except Refusal as refusal:
            self.counters.invalid += 1
            self._turn_away(work, refusal)
        if work.deadline <= now:
            self.counters.expired += 1
            self._turn_away(work, expired(work, now))
        if self._items + items > self.capacity:
            self.drop(now)  # the room of those who left
        if self._items + items > self.capacity:
            self.counters.full += 1
            self._turn_away(work, self._full(items))
        line = self._lines.setdefault(work.key, [])
        insort(line, _Waiting(work.arrived, self.counters.offered, work, items))
        self._items += items

    def due_at(self, now: float) -> float | None:
        """Return when `take` or `drop` has something to do: `now` or earlier if at once, None while nothing waits.

        That is the earliest of: a batch is full, the oldest request of a line has waited `max_wait_s`, a deadline.
        """
        times = [self._due(line, now) for line in self._lines.values()]
        if self._lines:
            times.append(self._earliest_deadline())
        return min(times, default=None)

    def take(self, now: float) -> Batch | None:
        """Return the batch that is due, None where there is none; drops what expired or was cancelled."""
        self.drop(now)
        while due := [(line[0], key) for key, line in self._lines.items() if self._due(line, now) <= now]:
            batch = self._cut(min(due)[1])
            if batch is not None:
                return batch
        return None

    def drop(self, now: float) -> int:
        """Answer what has expired and forget what was cancelled; returns how many works left."""
        gone = [one for line in self._lines.values() for one in line if _left(one.work, now)]
        if gone:
            numbers = {one.number for one in gone}
            self._lines = {
                key: kept
                for key, line in self._lines.items()
                if (kept := [one for one in line if one.number not in numbers])
            }
        for one in gone:
            self._items -= one.items
            if one.work.done.cancelled():
                self.counters.cancelled += 1
                one.work.done.set_running_or_notify_cancel()
            else:
                self.counters.expired += 1
                self._answer(one.work, expired(one.work, now))
        return len(gone)

    def abandon(self, refusal: Refusal) -> int:
        """Refuse all that waits, as nothing will run it; returns how many works that were."""
        gone = [one for line in self._lines.values() for one in line]
        self._lines, self._items = {}, 0
        self.counters.abandoned += len(gone)
        for one in gone:
            self._answer(one.work, refusal)
        return len(gone)

    def lower(self, max_items: int) -> None:
        """Make batches smaller from now on. A request that is larger than that still comes out, alone."""
        self.max_items = max(1, min(self.max_items, max_items))

    def _due(self, line: list[_Waiting], now: float) -> float:
        if sum(one.items for one in line) >= self.max_items:
            return now
        return line[0].arrived + self.max_wait_s

    def _earliest_deadline(self) -> float:
        return min(one.work.deadline for line in self._lines.values() for one in line)

    def _cut(self, key: Key) -> Batch | None:
        """Cut a batch off the front of a line; None where all of it was cancelled at this moment."""
        line = self._lines[key]
        chosen: list[Work] = []
        items = passed = 0
        for one in line:
            if chosen and items + one.items > self.max_items:
                break
            passed += 1
            self._items -= one.items
            # From here on the future can't be cancelled; a False says that it was, after `drop` had looked.
            if one.work.done.set_running_or_notify_cancel():
                chosen.append(one.work)
                items += one.items
                self.counters.taken += 1
            else:
                self.counters.cancelled += 1
        del line[:passed]
        if not line:
            del self._lines[key]
        return Batch(tuple(chosen), key, items) if chosen else None

    def _full(self, items: int) -> Refusal:
        return Refusal(
            503,
            "queue_full",
            f"the queue is full: {self._items} of {self.capacity} items wait, this request brings {items}; try again "
            f"in {self._retry_after_s:g} s, or serve with more workers",
            {"Retry-After": str(max(1, math.ceil(self._retry_after_s)))},
        )

    def _turn_away(self, work: Work, refusal: Refusal) -> NoReturn:
        self._answer(work, refusal)
        raise refusal


def items_of(work: Work, largest: int) -> int:
    """Return how many items work has.

    Raises:
        Refusal: 400 where there are no feeds, they differ in their first axis, or it is not 1 to `largest`.
    """
    if work.make is not None:
        return 1
    lengths = {name: array.shape[0] if array.ndim else None for name, array in work.feeds.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        found = ", ".join(f"{name} {work.feeds[name].shape}" for name in lengths) or "none"
        raise Refusal(
            400,
            "bad_request",
            f"the inputs are {found}; expected one or more with a common first axis, the batch",
        )
    items = work.items
    if not 1 <= items <= largest:
        raise Refusal(
            400,
            "bad_request",
            f"the request has a batch of {items}; expected 1 to {largest}: "
            + ("send at least one item" if items < 1 else "split it into smaller requests"),
        )
    return items


def expired(work: Work, now: float) -> Refusal:
    """Return what work is told that was not executed in time."""
    waited, allowed = now - work.arrived, work.deadline - work.arrived
    return Refusal(
        504,
        "deadline",
        f"the request was not executed: it waited {waited:.3f} s and had {allowed:.3f} s; the server is busy, try "
        "again later or allow more time",
    )


def _left(work: Work, now: float) -> bool:
    return work.deadline <= now or work.done.cancelled()
