"""A router over executors that fail on demand."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.breaker import Breaker, Thresholds
from vitesse.serve.releases.observer import Unobserved
from vitesse.serve.releases.router import Routed, Router
from vitesse.serve.releases.state import ReleaseState, StateFile
from vitesse.serve.work import Arrays, Executed, Work


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """Doubles its feeds at once; or holds the work back; or does what `act` says."""

    def __init__(self) -> None:
        self.taken: list[Work] = []
        self.act: Callable[[Work], object] | None = None
        self.hold = False
        self.waiting, self.capacity = 0, 10

    def depth(self) -> int:
        return self.waiting

    def submit(self, work: Work) -> None:
        self.taken.append(work)
        if self.act is not None:
            self.act(work)
        elif not self.hold:
            self.finish(work)

    def finish(self, work: Work, value: float | None = None, seconds: float = 0.01) -> None:
        outputs = 2 * work.feeds["x"] if value is None else np.full_like(work.feeds["x"], value)
        work.done.set_result(Executed({"y": outputs}, 0.0, seconds, work.items, 0))


class Pick:
    """Compares always or never; agreement is 1 for equal arrays, else 0."""

    def __init__(self, compare: bool = False) -> None:
        self.compare = compare

    def compared(self) -> bool:
        return self.compare

    def watched(self) -> bool:
        return False

    def agreement(self, release: str, found: Arrays, expected: Arrays) -> float:
        return float(np.array_equal(found["y"], expected["y"]))

    def scores(self, release: str, outputs: Arrays) -> tuple[float, ...]:
        return ()


class Heard(Unobserved):
    def __init__(self) -> None:
        self.rollbacks: list[tuple[str, str]] = []
        self.breaker: list[str] = []
        self.dropped = 0
        self.noted: list[str] = []

    def rolled_back(self, release: str, kind: str, why: str) -> None:
        self.rollbacks.append((release, kind))

    def breaker_changed(self, release: str, state: str, why: str) -> None:
        self.breaker.append(state)

    def shadow_dropped(self, release: str) -> None:
        self.dropped += 1

    def release_noted(self, release: str, what: str, why: str) -> None:
        self.noted.append(what)


class Bench:
    """A router with a reference, a live release and a candidate."""

    def __init__(
        self, folder: Path | None = None, *, compare: bool = False, draw: float = 0.0, **more: Any
    ) -> None:
        self.clock, self.heard, self.pick = Clock(), Heard(), Pick(compare)
        self.fakes = {name: Fake() for name in ("reference", "fast", "new")}
        file = None if folder is None else StateFile(folder)
        initial = ReleaseState().with_candidate("fast", "a", 0.0, "").with_candidate("new", "b", 0.0, "")
        self.router = Router(
            self.fakes, "reference", "fast", Breaker(self.clock, Thresholds(probes=2)), self.pick, self.clock,
            lambda: draw, self.heard, state=file, initial=initial.promoted("fast", 0.0, ""), wall=self.clock, **more,
        )  # fmt: skip

    def send(self, value: float = 1.0) -> Future[Routed]:
        self.clock.now += 0.01
        feeds = {"x": np.full((1, 2), value, np.float32)}
        return self.router.submit(Work(feeds, self.clock.now, self.clock.now + 5, "id"))

    def served_by(self) -> str:
        return self.send().result(0).served_by

    def trip(self) -> None:
        self.fakes["fast"].act = crash
        for _ in range(5):
            assert self.served_by() == "reference"
        self.fakes["fast"].act = None


def crash(work: Work) -> None:
    work.done.set_exception(Refusal(500, "backend", "CUDA error"))
