"""How many images a machine gets through: sessions on threads of their own, all busy, for some seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import Engine, LoadOptions, Tensors
from vitesse.benchmark.load import saturate
from vitesse.benchmark.quiet import ForeignLoad, settle
from vitesse.environment import usable_cores
from vitesse.errors import DataError

_WARM_UP_S = 2.0


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
            settle()
            watch = ForeignLoad()
            load = saturate(opened, feeds, images_of(engine, feeds), seconds, warm_up_s=_WARM_UP_S)
            inside = [call for call in load.calls if call.end_s <= seconds]
            images, ends = sum(call.images for call in inside), sorted(call.end_s for call in inside)
            return Throughput(images / seconds, count, threads, seconds, images, tuple(ends), watch.cores())
        finally:
            for session in opened:
                session.close()


def images_of(engine: Engine, feeds: Sequence[Tensors]) -> list[int]:
    """Return how many images each feed holds: the first dimension of the graph's first input."""
    first = engine.inputs[0].name
    return [one[first].shape[0] if one[first].ndim else 1 for one in feeds]
