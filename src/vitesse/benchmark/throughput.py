"""How many images a machine gets through: sessions on threads of their own, all busy, for some seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import Engine, LoadOptions, Session, Tensors
from vitesse.benchmark.latency import warm_up
from vitesse.benchmark.quiet import ForeignLoad, settle
from vitesse.environment import usable_cores
from vitesse.errors import DataError


@dataclass(frozen=True)
class Throughput:
    """Images per second of `sessions` sessions with `threads` threads each, saturated.

    `ends_s`: when each counted call ended, seconds from the start, so that drift can be seen afterwards.
    `foreign_cores`: average number of cores other processes kept busy meanwhile, None where unknown.
    """

    per_s: float
    sessions: int
    threads: int
    seconds: float
    images: int
    ends_s: tuple[float, ...]
    foreign_cores: float | None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, for the raw results of a run."""
        return {**asdict(self), "ends_s": [round(end, 6) for end in self.ends_s]}


def throughput(
    artifact: Artifact,
    feeds: Sequence[Tensors],
    *,
    sessions: int = 0,
    threads: int = 1,
    seconds: float = 3.0,
) -> Throughput:
    """Keep `sessions` sessions (0: one per usable core) of `threads` threads busy for `seconds`.

    Counted are the images of calls that ended inside the window, over the window's length. The first dimension of
    the first input is the number of images of a feed.

    Raises:
        DataError: no feeds.
        BackendError: the runtime refuses to load or run.
    """
    if not feeds:
        raise DataError("there is nothing to feed the model", expected="at least one image")
    count = sessions or usable_cores()
    options = LoadOptions(threads=threads, sessions=count)
    with backend(artifact.backend).load(artifact, options) as engine:
        opened = [engine.session() for _ in range(count)]
        try:
            for session in opened:
                warm_up(session, feeds, limit_s=2.0)
            settle()
            watch = ForeignLoad()
            ends, images = _saturate(opened, feeds, _images_of(engine, feeds), seconds)
            return Throughput(
                images / seconds, count, threads, seconds, images, tuple(sorted(ends)), watch.cores()
            )
        finally:
            for session in opened:
                session.close()


def _images_of(engine: Engine, feeds: Sequence[Tensors]) -> list[int]:
    first = engine.inputs[0].name
    return [one[first].shape[0] if one[first].ndim else 1 for one in feeds]


def _saturate(
    sessions: Sequence[Session], feeds: Sequence[Tensors], images: Sequence[int], seconds: float
) -> tuple[list[float], int]:
    """Return when the calls inside the window ended and how many images they held; raises what a worker raised."""
    done: list[tuple[float, int]] = []
    failed: list[BaseException] = []
    barrier = threading.Barrier(len(sessions) + 1)
    began = 0.0

    def work(session: Session, turn: int) -> None:
        try:
            barrier.wait()
            while not failed and time.perf_counter() - began < seconds:
                session.run(feeds[turn % len(feeds)])
                done.append((time.perf_counter() - began, images[turn % len(feeds)]))
                turn += 1
        except BaseException as error:
            failed.append(error)

    workers = [
        threading.Thread(target=work, args=(session, turn), daemon=True)
        for turn, session in enumerate(sessions)
    ]
    for worker in workers:
        worker.start()
    began = time.perf_counter()
    barrier.wait()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]
    inside = [(end, count) for end, count in done if end <= seconds]
    return [end for end, _ in inside], sum(count for _, count in inside)
