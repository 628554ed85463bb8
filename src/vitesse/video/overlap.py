"""Stages that work at the same time on items in a row: a thread each, short queues between, the order kept.

source ──▶ channel ──▶ stage ──▶ channel ──▶ stage …

The first channel may drop its oldest item instead of making the source wait. An error in the source or any stage ends
all of them and is raised once; no wait outlasts it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Aborted(Exception):
    """A channel was given up, because something else failed."""


class Channel(Generic[T]):
    """A queue between two threads that holds at most `capacity` items.

    Args:
        capacity: at least 1.
        dropped: hears each item that is thrown away for a newer one; None makes `put` wait instead.
    """

    def __init__(self, capacity: int, dropped: Callable[[T], None] | None = None) -> None:
        self._items: deque[T] = deque()
        self._capacity, self._dropped = capacity, dropped
        self._ended = self._aborted = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Append an item, after waiting for room or dropping the oldest.

        Raises:
            Aborted: the channel was given up.
        """
        with self._changed:
            if self._dropped is None:
                self._changed.wait_for(lambda: self._aborted or len(self._items) < self._capacity)
            elif len(self._items) >= self._capacity:
                self._dropped(self._items.popleft())
            if self._aborted:
                raise Aborted
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T | None:
        """Take the oldest item, after waiting for one; None when the source has ended and all are taken.

        Raises:
            Aborted: the channel was given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._ended or bool(self._items))
            if self._aborted:
                raise Aborted
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """Say that no further item comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Give the channel up: whoever waits, or comes later, gets `Aborted`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()


class Overlap(Generic[T]):
    """A source and stages, a thread each.

    Args:
        stages: name and function; what one returns the next takes. Each is called by one thread only, in order.
        capacity: items that wait before each stage.
        dropped: as for `Channel`, between the source and the first stage, where then one item waits: what that stage
            takes up next is the newest there is.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Callable[[T], T]]],
        *,
        capacity: int = 4,
        dropped: Callable[[T], None] | None = None,
    ) -> None:
        self._stages = tuple(stages)
        first: Channel[T] = Channel(capacity if dropped is None else 1, dropped)
        self._channels: list[Channel[T]] = [first, *(Channel[T](capacity) for _ in self._stages[1:])]
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._failing = threading.Lock()

    @property
    def stopping(self) -> threading.Event:
        """Set when no more items are wanted; a source that waits should wait on it."""
        return self._stopping

    def run(self, source: Iterable[T]) -> bool:
        """Work until the source ends; False where `KeyboardInterrupt` ended it early.

        Such an interrupt stops the source; what it has given is finished. A second one is raised, when all threads were
        told to end.

        Raises:
            BaseException: the first error of the source or a stage, once all threads are done.
        """
        threads = [threading.Thread(target=self._feed, args=(source,), name="video source", daemon=True)]
        for index, (name, _) in enumerate(self._stages):
            threads.append(
                threading.Thread(target=self._work, args=(index,), name=f"video {name}", daemon=True)
            )
        try:
            for thread in threads:
                thread.start()
            finished = _joined(threads)
            if not finished:
                self._stopping.set()
                _join(threads)
        except KeyboardInterrupt:
            self._fail(KeyboardInterrupt())
            _join([thread for thread in threads if thread.ident is not None])
            raise  # only now may the caller close what the threads used
        if self._failure is not None:
            raise self._failure
        return finished

    def _feed(self, source: Iterable[T]) -> None:
        try:
            for item in source:
                self._channels[0].put(item)
                if self._stopping.is_set():
                    break
            self._channels[0].end()
        except Aborted:
            pass
        except BaseException as error:  # whatever it is, the caller's thread has to hear of it
            self._fail(error)
        finally:
            close = getattr(
                source, "close", None
            )  # a generator frees what it holds on the thread that used it
            if close is not None:
                close()

    def _work(self, index: int) -> None:
        stage, inlet = self._stages[index][1], self._channels[index]
        outlet = self._channels[index + 1] if index + 1 < len(self._stages) else None
        try:
            while (item := inlet.get()) is not None:
                made = stage(item)
                if outlet is not None:
                    outlet.put(made)
            if outlet is not None:
                outlet.end()
        except Aborted:
            pass
        except BaseException as error:  # as above
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._failing:
            self._failure = self._failure or error
        self._stopping.set()
        for channel in self._channels:
            channel.abort()


def _joined(threads: Sequence[threading.Thread]) -> bool:
    try:
        _join(threads)
    except KeyboardInterrupt:
        return False
    return True


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # not without end: on some systems an interrupt does not wake a join
