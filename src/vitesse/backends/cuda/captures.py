"""One capture at a time, and nothing else meanwhile: for libraries that capture CUDA graphs in CUDA's global mode.

While such a capture goes on, an allocation or a question about an event by any other thread of the process breaks
it, and CUDA refuses what follows (error 901). ONNX Runtime captures so. `GraphCache` captures in thread-local mode and
needs no turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Turns:
    """Many may use the GPU at once, or one may capture. A thread that has a turn must not ask for another."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._using = 0
        self._capturing = 0  # that capture, or wait for those who use the GPU to finish

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use the GPU in any way but capturing; waits for a capture, also for one that waits."""
        with self._changed:
            while self._capturing:
                self._changed.wait()
            self._using += 1
        try:
            yield
        finally:
            with self._changed:
                self._using -= 1
                self._changed.notify_all()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Capture while nobody else uses the GPU."""
        with self._changed:
            while self._capturing:
                self._changed.wait()
            self._capturing = 1
            while self._using:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._capturing = 0
                self._changed.notify_all()


# CUDA's rule holds for the whole process.
TURNS = Turns()
