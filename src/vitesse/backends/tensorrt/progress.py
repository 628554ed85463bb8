"""How far a build is, told to a `Progress`, and Ctrl-C, which ends it.

TensorRT tells phases within phases, each with a number of steps, and asks after every step whether to go on. It stops
only there: a phase that compiles everything in one step ends before Ctrl-C is heard.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vitesse.progress import Progress

if TYPE_CHECKING:
    import tensorrt

T = TypeVar("T")

# How often the main thread looks for signals while a build goes on; on Windows it cannot be woken by them.
_LOOK_S = 0.1


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Share:
    """The done share of nested phases, 0 to 1, which never goes back.

    A phase that began within another is a part of that one's current step.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._reached = 0.0

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins within `parent`, or as the outermost one."""
        self._phases[name] = _Phase(parent if parent in self._phases else None, max(1, steps))

    def step(self, name: str, number: int) -> None:
        """Step `number`, from 0, of a phase is done."""
        if name in self._phases:
            self._phases[name].done = max(self._phases[name].done, number + 1)

    def end(self, name: str) -> None:
        """A phase is over, finished or not."""
        phase = self._phases.pop(name, None)
        if phase is not None and phase.parent is None and not self._phases:
            self._reached = 1.0

    def now(self) -> float:
        """Return the share."""
        outermost = [name for name, phase in self._phases.items() if phase.parent is None]
        if outermost:
            self._reached = max(self._reached, self._of(outermost[0]))
        return self._reached

    def _of(self, name: str) -> float:
        phase = self._phases[name]
        within = sum(self._of(child) for child, other in self._phases.items() if other.parent == name)
        return min(1.0, (phase.done + min(1.0, within)) / phase.steps)


def monitor(base: Any, progress: Progress, stop: threading.Event) -> tensorrt.IProgressMonitor:
    """Return a monitor for a builder's configuration.

    Args:
        base: the class `IProgressMonitor` of the module.
        progress: advances by hundredths of the build; the caller has begun a stage of 100 steps.
        stop: once it is set, the build ends after its current step.
    """
    share, lock, told = Share(), threading.Lock(), [0.0]

    def tell() -> None:
        now = 100 * share.now()
        if now >= min(100, told[0] + 1) > told[0]:  # thousands of steps are no news each
            progress.advance(now - told[0])
            told[0] = now

    class Native(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:  # phases may be told from several threads
                share.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                share.step(phase_name, step)
                tell()
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                share.end(phase_name)
                if not stop.is_set():  # phases that are given up end, too
                    tell()

    native: tensorrt.IProgressMonitor = Native()
    return native


def interruptible(work: Callable[[], T], stop: threading.Event) -> T:
    """Do `work`; on Ctrl-C set `stop` and, when `work` has returned, raise KeyboardInterrupt. A second Ctrl-C kills.

    Python delivers signals to the main thread alone, and only between its own instructions, so that the work is done
    on another thread while the main thread waits. Off the main thread, or where Ctrl-C is ignored or handled outside
    Python, the work is just done.
    """
    previous = (
        signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    )
    if previous is None or previous is signal.SIG_IGN:
        return work()

    def stopping(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, stopping)
    try:
        with ThreadPoolExecutor(1, "engine-build") as pool:
            future = pool.submit(work)
            while not future.done():
                wait([future], _LOOK_S)
        if stop.is_set():
            raise KeyboardInterrupt
        return future.result()
    finally:
        signal.signal(signal.SIGINT, previous)
