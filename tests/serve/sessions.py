"""Sessions whose outputs say which inputs they came from, and that fail as a test wants; and a clock moved by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vitesse.backends.closing import Closing
from vitesse.backends.protocol import Outcome, TensorInfo
from vitesse.serve.pool import Pool
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays, Executed, Work

SOON_S = 10.0  # what a test waits for at most; it takes milliseconds
Act = Callable[["EchoSession", Arrays], None]


class EchoSession(Closing):
    """y = 2x + 1 in an array that the next run overwrites, as a runtime's is."""

    def __init__(self, engine: EchoEngine, number: int) -> None:
        self.engine, self.number, self.runs, self.closed = engine, number, 0, False
        self.threads = {threading.get_ident()}
        self.seen: list[Arrays] = []
        self._output: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def run(self, feeds: Mapping[str, Any]) -> Outcome:
        self.runs += 1
        self.threads.add(threading.get_ident())
        self.seen.append(dict(feeds))
        self.engine.act(self, feeds)
        x = feeds["x"]
        output = self._output.setdefault(x.shape[1:], np.empty((64, *x.shape[1:]), np.float32))[: len(x)]
        np.multiply(x, 2, out=output)
        output += 1
        return Outcome({"y": output}, 1.0, 0.5)

    def close(self) -> None:
        self.closed = True
        self.threads.add(threading.get_ident())


class EchoEngine(Closing):
    """Opens such sessions; `act` is called in every run with the session and its feeds, `opening` before opening."""

    def __init__(self, act: Act = lambda session, feeds: None, *, batch: int | str = "batch") -> None:
        self.act = act
        self.opening: Callable[[int], None] = lambda number: None
        self.sessions: list[EchoSession] = []
        self._opened = 0
        self.inputs = (TensorInfo("x", (batch, "size"), "float32"),)
        self.outputs = (TensorInfo("y", (batch, "size"), "float32"),)

    def session(self) -> EchoSession:
        self._opened += 1
        self.opening(self._opened - 1)
        made = EchoSession(self, len(self.sessions))
        self.sessions.append(made)
        return made

    def close(self) -> None:
        pass


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """An observer that keeps what it heard."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.reasons: list[str] = []
        self.states: list[tuple[int, str]] = []
        self.halved: list[int] = []
        self.queues: list[float] = []

    def batch_executed(
        self, items: int, works: int, queue_s: Sequence[float], infer_s: float, device_ms: float | None
    ) -> None:
        assert len(queue_s) == works and device_ms is not None and infer_s >= 0
        self.batches.append((items, works))
        self.queues += queue_s

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)

    def worker_changed(self, worker: int, state: str) -> None:
        self.states.append((worker, state))

    def memory_halved(self, max_items: int) -> None:
        self.halved.append(max_items)


def asked(
    value: float, *, items: int = 1, size: int = 2, clock: Callable[[], float] = time.monotonic
) -> Work:
    """Work whose inputs are value, value + 0.25, …; it has a minute."""
    now = clock()
    rows = value + 0.25 * np.arange(items, dtype=np.float32)
    return Work(
        {"x": np.repeat(rows[:, None], size, axis=1).astype(np.float32)}, now, now + 60.0, f"r{value:g}"
    )


def answer(work: Work) -> Executed:
    """The answer, which must be that of this work's own inputs."""
    found = work.done.result(SOON_S)
    np.testing.assert_array_equal(found.outputs["y"], 2 * work.feeds["x"] + 1)
    return found


def until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.001)


class Gate:
    """Lets the first runs wait until a test opens it, and says that one waits."""

    def __init__(self, holds: int = 1) -> None:
        self.waiting, self._open, self._holds = threading.Event(), threading.Event(), holds
        self._lock = threading.Lock()
        self.entered = 0

    def __call__(self, session: EchoSession, feeds: Arrays) -> None:
        with self._lock:
            self.entered += 1
            held = self.entered <= self._holds
        if held:
            self.waiting.set()
            assert self._open.wait(SOON_S)

    def open(self) -> None:
        self._open.set()


@contextmanager
def pool(engine: EchoEngine, **options: Any) -> Iterator[Pool]:
    made = Pool(engine, **{"workers": 1, "look_s": 0.005, **options})
    try:
        yield made
    finally:
        made.close(SOON_S)


def refusal(work: Work) -> Refusal:
    found = work.done.exception(SOON_S)
    assert isinstance(found, Refusal)
    return found


def submitted(made: Pool, *works: Work) -> None:
    for work in works:
        made.submit(work)
