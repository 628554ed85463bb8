"""A lock, and calls that its holder puts off until it is free again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

_LOG = logging.getLogger(__name__)


class _Later(threading.local):
    """Calls that a thread makes once it has released the lock."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []


class HeldLock:
    """Holds a reentrant lock in a `with` block and makes the calls of `later` afterwards, also where the block raised.

    A class, because a generator with `contextmanager` takes twice as long, five times a request.

    Args:
        lock: others may take it without these calls.
        before: called with the lock held at the end of a block that has not raised.
    """

    def __init__(self, lock: threading.RLock, before: Callable[[], None]) -> None:
        self._lock, self._before, self._later = lock, before, _Later()

    @property
    def waiting(self) -> bool:
        """Whether this thread has put off calls."""
        return bool(self._later.calls)

    def later(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function when this thread has released the lock; what it raises is logged."""
        self._later.calls.append(partial(function, *arguments))

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._before()
        finally:
            self._lock.release()
            self._call()

    def _call(self) -> None:
        calls, self._later.calls = self._later.calls, []
        for call in calls:
            try:
                call()
            except Exception:  # of an observer or a callback: it must not end a worker
                _LOG.exception("an observer of the pool failed")
