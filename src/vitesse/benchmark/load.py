"""Sessions on threads of their own, all busy: when each call began and ended, and what it said of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vitesse.backends.protocol import Session, Tensors
from vitesse.benchmark.latency import warm_up


@dataclass(frozen=True)
class Call:
    """One call: begin and end in seconds from the start of the load, the images it held, the session's own times."""

    begin_s: float
    end_s: float
    images: int
    host_ms: float
    device_ms: float | None


@dataclass(frozen=True)
class Load:
    """All calls of all sessions, those included that ended after the window of `seconds` from the start.

    `began`: the start, by `time.perf_counter`.
    """

    calls: tuple[Call, ...]
    seconds: float
    began: float

    @property
    def images_per_s(self) -> float:
        """Images of the window over its length; a call that ends outside counts with the share of its time inside.

        Whole calls alone would make a large batch look slow: of calls that take a third of the window, up to one in
        three is lost at its end.
        """
        inside = sum(
            call.images * (min(call.end_s, self.seconds) - call.begin_s) / (call.end_s - call.begin_s)
            for call in self.calls
            if call.begin_s < self.seconds and call.end_s > call.begin_s
        )
        return inside / self.seconds

    @property
    def window(self) -> tuple[float, float]:
        """Begin and end of the window by `time.perf_counter`."""
        return self.began, self.began + self.seconds


def saturate(
    sessions: Sequence[Session],
    feeds: Sequence[Tensors],
    images: Sequence[int],
    seconds: float,
    *,
    least_calls: int = 0,
    warm_up_s: float = 0.0,
) -> Load:
    """Keep every session busy with `feeds` in turn for `seconds`, and until each has made `least_calls`.

    Args:
        images: how many images each of `feeds` holds.
        warm_up_s: how long each session may be warmed up before, on the thread that it is measured on: ONNX Runtime
            keeps CUDA handles and graphs for each thread, and makes them in a thread's first call.

    Raises:
        what a session raised; the others then stop after their call.
    """
    calls: list[Call] = []
    failed: list[BaseException] = []
    made = [0] * len(sessions)
    enough: list[float] = [] if least_calls else [0.0]
    began = 0.0

    def begin() -> None:
        nonlocal began
        began = time.perf_counter()

    barrier = threading.Barrier(len(sessions) + 1, action=begin)

    def unfinished() -> bool:
        return not enough or time.perf_counter() - began < seconds

    def work(session: Session, worker: int) -> None:
        turn = worker
        try:
            if warm_up_s:
                warm_up(session, feeds, limit_s=warm_up_s)
        except BaseException as error:
            failed.append(error)
        barrier.wait()
        try:
            while not failed and unfinished():
                begin = time.perf_counter()
                outcome = session.run(feeds[turn % len(feeds)])
                end = time.perf_counter()
                count = images[turn % len(feeds)]
                calls.append(Call(begin - began, end - began, count, outcome.host_ms, outcome.device_ms))
                made[worker] += 1
                if min(made) >= least_calls:
                    enough.append(end - began)
                turn += 1
        except BaseException as error:
            failed.append(error)

    workers = [
        threading.Thread(target=work, args=(session, worker), daemon=True)
        for worker, session in enumerate(sessions)
    ]
    for thread in workers:
        thread.start()
    barrier.wait()
    for thread in workers:
        thread.join()
    if failed:
        raise failed[0]
    return Load(tuple(calls), max(seconds, enough[0]), began)
