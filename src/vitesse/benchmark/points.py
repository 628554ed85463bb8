"""One artifact at several batch sizes and numbers of streams: images per second, time of a call, memory, refusals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.closing import Closing
from vitesse.backends.protocol import LoadOptions, Session, Tensors
from vitesse.benchmark.load import saturate
from vitesse.benchmark.memory_meter import MemoryMeter, release_freed
from vitesse.benchmark.quiet import ForeignLoad, settle
from vitesse.benchmark.watch import CLEAN, Observed, Watch, Window
from vitesse.environment import usable_cores
from vitesse.errors import MissingExtra, UsageError, VitesseError

REFUSED = "refused"
ROUNDS = 3
# Each session makes this many calls in a window however slow they are: a single one has no neighbour to overlap with.
_LEAST_CALLS = 2
_WARM_UP_S = 1.0

Pair = tuple[int, int]
FeedsOf = Callable[[int], Tensors]


@dataclass(frozen=True)
class Round:
    """One window of a point.

    Args:
        images_per_s: throughput.
        host_ms, device_ms: of every call; the device's only where the runtime measures it.
        host_memory_mb, device_memory_mb: of this process at its end, libraries and weights included (1e6 bytes).
        foreign_cores: cores that other processes kept busy meanwhile; None where unknown.
    """

    images_per_s: float
    host_ms: tuple[float, ...]
    device_ms: tuple[float, ...] = ()
    host_memory_mb: float | None = None
    device_memory_mb: float | None = None
    foreign_cores: float | None = None


@dataclass(frozen=True)
class Point:
    """What `streams` sessions, each with batches of `batch` images, do when all are kept busy.

    Args:
        threads: CPU threads of one session; 0 = the runtime's default.
        cuda_graph: whether calls may be replayed as a CUDA graph; None on a CPU.
        observed: what the watcher saw; None where nothing ran.
        refusal: why it did not run, in the runtime's words; rounds before that are kept.
    """

    batch: int
    streams: int
    threads: int = 0
    cuda_graph: bool | None = None
    rounds: tuple[Round, ...] = ()
    observed: Observed | None = None
    refusal: str = ""

    @property
    def pair(self) -> Pair:
        """Batch size and streams."""
        return self.batch, self.streams

    @property
    def verdict(self) -> str:
        """`refused`, or what the watcher says: `clean`, `throttled` or `unobserved`."""
        if self.refusal or self.observed is None:
            return REFUSED
        return self.observed.verdict

    @property
    def calls(self) -> int:
        """How many calls were measured."""
        return sum(len(one.host_ms) for one in self.rounds)

    @cached_property
    def throughput_per_s(self) -> float | None:
        """Images per second, median of the rounds."""
        return _median([one.images_per_s for one in self.rounds])

    @cached_property
    def p50_ms(self) -> float | None:
        """Median time of a call on the host, all rounds together."""
        return self._quantile(50)

    @cached_property
    def p99_ms(self) -> float | None:
        """The time that 99 of 100 calls keep; of few calls, nearly the longest."""
        return self._quantile(99)

    @cached_property
    def device_ms(self) -> float | None:
        """Median time of a call on the device."""
        return _median([ms for one in self.rounds for ms in one.device_ms])

    @property
    def memory_mb(self) -> float | None:
        """The most memory where the batches lie: on the GPU if there is one, else the host's."""
        found = [
            one.host_memory_mb if self.cuda_graph is None else one.device_memory_mb for one in self.rounds
        ]
        return max((mb for mb in found if mb is not None), default=None)

    @property
    def foreign_cores(self) -> float | None:
        """Cores that others kept busy in the worst round."""
        return max((one.foreign_cores for one in self.rounds if one.foreign_cores is not None), default=None)

    def with_more(self, later: Point) -> Point:
        """Return this point with the rounds of a later measurement, the worse verdict, and a refusal of either."""
        worse = self.observed if self.verdict not in (CLEAN, REFUSED) else later.observed or self.observed
        return replace(
            self,
            rounds=(*self.rounds, *later.rounds),
            observed=worse,
            refusal=self.refusal or later.refusal,
        )

    def figures(self) -> dict[str, Any]:
        """Return the figures of the table as plain values; what was not measured is None."""
        return {
            "batch": self.batch,
            "streams": self.streams,
            "threads": self.threads,
            "cuda_graph": self.cuda_graph,
            "throughput_per_s": _rounded(self.throughput_per_s, 3),
            "p50_ms": _rounded(self.p50_ms, 6),
            "p99_ms": _rounded(self.p99_ms, 6),
            "device_ms": _rounded(self.device_ms, 6),
            "memory_mb": _rounded(self.memory_mb, 3),
            "foreign_cores": _rounded(self.foreign_cores, 3),
            "calls": self.calls,
            "verdict": self.verdict,
            "refusal": self.refusal,
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values: the figures, every call (to nanoseconds), what the watcher saw."""
        rounds = [
            {
                **asdict(one),
                "host_ms": [round(ms, 6) for ms in one.host_ms],
                "device_ms": [round(ms, 6) for ms in one.device_ms],
            }
            for one in self.rounds
        ]
        observed = None if self.observed is None else self.observed.to_json()
        return {**self.figures(), "observed": observed, "rounds": rounds}

    def _quantile(self, percent: float) -> float | None:
        samples = [ms for one in self.rounds for ms in one.host_ms]
        return float(np.percentile(samples, percent)) if samples else None


@dataclass
class _Gathered:
    """What the rounds of one point have brought so far."""

    rounds: list[Round] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    refusal: str = ""


@dataclass
class _Bed:
    """An open engine and its sessions, and the largest batch they have met."""

    streams: int
    largest: int
    sessions: list[Session]
    stack: ExitStack


class Bench(Closing):
    """Measures points of one artifact; memory is counted from when this is made, so make it before loading.

    Args:
        feeds_of: batch size → what one call is fed with; the batch is the first dimension of every input.
        options: how the engine is loaded; `threads` 0 divides the usable cores among the streams of a CPU, and
            `sessions` is set to the streams of each point.
        device: number of the GPU, None for a CPU.
        watch: opens the watcher of a measurement, such as one with a test's sensors.
    """

    def __init__(
        self,
        artifact: Artifact,
        feeds_of: FeedsOf,
        options: LoadOptions,
        device: int | None,
        *,
        watch: Callable[[], Watch] | None = None,
    ) -> None:
        self._artifact, self._feeds_of, self._device = artifact, feeds_of, device
        self._given = options if device is None else replace(options, device=device)
        self._watch = watch or (lambda: Watch(device))
        self._meter = MemoryMeter(device)
        self._bed: _Bed | None = None
        self.room_mb = self._meter.room_mb()

    def measure(
        self,
        pairs: Sequence[Pair],
        seconds: float,
        *,
        rounds: int = ROUNDS,
        on_window: Callable[[], None] = lambda: None,
    ) -> tuple[Point, ...]:
        """Measure every (batch, streams) for `seconds` in all, in `rounds` windows that take turns.

        In every round each number of streams has engine and sessions of its own, and its batches in rising order, so
        that memory is that of the batch and not of a larger one before it. What a runtime refuses, for lack of memory
        or because the graph has a fixed batch, is a result: the sweep goes on.

        Raises:
            MissingExtra: the runtime or the GPU is not here.
        """
        gathered = {pair: _Gathered() for pair in dict.fromkeys(pairs)}
        streams = sorted({pair[1] for pair in gathered})
        with self._watch() as watch:
            for turn in range(rounds):
                at = turn % len(streams) if streams else 0
                for count in streams[at:] + streams[:at]:
                    batches = sorted(batch for batch, of in gathered if of == count)
                    self._group(count, batches, seconds / rounds, gathered, on_window)
        return tuple(self._point(pair, gathered[pair], watch) for pair in gathered)

    def options(self, streams: int) -> LoadOptions:
        """Return the options that a point with that many streams is loaded with."""
        divided = max(1, usable_cores() // streams) if self._device is None else 0
        return replace(self._given, threads=self._given.threads or divided, sessions=streams)

    def close(self) -> None:
        """Release engine and sessions, and the drivers that were asked for memory."""
        self._leave()
        self._meter.close()

    def _group(
        self,
        streams: int,
        batches: Sequence[int],
        seconds: float,
        gathered: dict[Pair, _Gathered],
        on_window: Callable[[], None],
    ) -> None:
        """One window for each batch size; after a refusal the rest gets a new engine, as the old one may be broken."""
        for batch in batches:
            into = gathered[batch, streams]
            if into.refusal:
                continue
            try:
                self._window(self._sessions(batch, streams), batch, seconds, into)
            except MissingExtra:
                raise
            except (VitesseError, MemoryError) as error:
                into.refusal = _words(error)
                self._leave()
            on_window()

    def _sessions(self, batch: int, streams: int) -> Sequence[Session]:
        """Return sessions that have met no larger batch: those that are open, or new ones."""
        bed = self._bed
        if bed is None or bed.streams != streams or bed.largest > batch:
            self._leave()
            with ExitStack() as stack:
                engine = stack.enter_context(
                    backend(self._artifact.backend).load(self._artifact, self.options(streams))
                )
                sessions = [stack.enter_context(engine.session()) for _ in range(streams)]
                bed = self._bed = _Bed(streams, batch, sessions, stack.pop_all())
        bed.largest = batch
        return bed.sessions

    def _leave(self) -> None:
        bed, self._bed = self._bed, None
        if bed is not None:
            bed.stack.close()
            bed.sessions.clear()
            release_freed()

    def _window(self, sessions: Sequence[Session], batch: int, seconds: float, into: _Gathered) -> None:
        feeds = self._feeds_of(batch)
        settle()
        foreign = ForeignLoad()
        load = saturate(sessions, [feeds], [batch], seconds, least_calls=_LEAST_CALLS, warm_up_s=_WARM_UP_S)
        calls = [call for call in load.calls if call.begin_s < load.seconds]
        into.windows.append(load.window)
        into.rounds.append(
            Round(
                load.images_per_s,
                tuple(call.host_ms for call in calls),
                tuple(call.device_ms for call in calls if call.device_ms is not None),
                self._meter.host_mb(),
                self._meter.device_mb(),
                foreign.cores(),
            )
        )

    def _point(self, pair: Pair, found: _Gathered, watch: Watch) -> Point:
        batch, streams = pair
        return Point(
            batch,
            streams,
            self.options(streams).threads,
            None if self._device is None else self._given.cuda_graph,
            tuple(found.rounds),
            watch.observed(found.windows) if found.rounds else None,
            found.refusal,
        )


def bench(
    artifact: Artifact,
    feeds_of: FeedsOf,
    *,
    batches: Sequence[int],
    streams: Sequence[int],
    seconds: float,
    options: LoadOptions,
    device: int | None,
    on_window: Callable[[], None] = lambda: None,
) -> tuple[Point, ...]:
    """Measure every batch size with every number of streams, `seconds` each; arguments as `Bench`.

    Raises:
        UsageError: no batch size or number of streams, or one below 1.
        MissingExtra: the runtime or the GPU is not here.
    """
    if not batches or not streams or min((*batches, *streams)) < 1:
        raise UsageError(
            f"batch sizes {list(batches)} and streams {list(streams)}",
            expected="at least one of each, from 1 on",
            fix="--batch 1,8 --streams 1,2",
        )
    with Bench(artifact, feeds_of, options, device) as opened:
        return opened.measure(list(product(batches, streams)), seconds, on_window=on_window)


def _words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory on the host"
    assert isinstance(error, VitesseError)
    return f"{error.what}; expected {error.expected}" if error.expected else error.what


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
