"""One capture at a time, and nothing else meanwhile: for libraries that capture CUDA graphs in CUDA's global mode.

While such a capture goes on, an allocation or a question about an event by any other thread of the process breaks
it, and CUDA refuses what follows (error 901). ONNX Runtime captures so. `GraphCache` captures in thread-local mode and
needs no turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Condition


class Turns:
    """Many may use the GPU at once, or one may capture. A thread that has a turn must not ask for another."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._using = 0
        self._capturing = False  # also while it waits for those who use the GPU to finish
        self._put_off: list[Callable[[], None]] = []

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use the GPU in any way but capturing; waits for a capture, also for one that waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._using += 1
        try:
            yield
        finally:
            self._used()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Capture while nobody else uses the GPU."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._using)
            yield
        finally:
            with self._changed:
                self._capturing = False
                put_off, self._put_off = self._put_off, []
                self._changed.notify_all()
            with ExitStack() as leaving:
                for act in put_off:
                    leaving.callback(self.soon, act)

    def soon(self, act: Callable[[], None]) -> None:
        """Use the GPU at once, or behind the capture that goes on or waits.

        Never waits, so that any thread may call it at any time: one that has a turn, and one that collects garbage.
        """
        with self._changed:
            if self._capturing:
                self._put_off.append(act)
                return
            self._using += 1
        try:
            act()
        finally:
            self._used()

    def _used(self) -> None:
        with self._changed:
            self._using -= 1
            self._changed.notify_all()


# CUDA's rule holds for the whole process.
TURNS = Turns()
