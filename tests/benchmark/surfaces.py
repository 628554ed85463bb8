"""Machines that exist on paper only: throughput, time of a call and memory as formulas, with noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from vitesse.benchmark.points import Pair, Point, Round
from vitesse.benchmark.watch import CLEAN, Observed

Surface = Callable[[int, int], float]


def saturating(batch: int, streams: int) -> float:
    """A GPU: both axes fill it, slowly, and neither ever hurts."""
    busy = batch * streams
    return 4000 * busy / (busy + 12)


def peaked(batch: int, streams: int) -> float:
    """A cache that overflows: the best is a medium batch with two streams, and 1 or 4 are clearly worse."""
    return 1000 * np.exp(-((np.log2(batch) - 3.4) ** 2) / 8) * {1: 0.8, 2: 1.0, 3: 0.93}.get(streams, 0.7)


def sawtooth(batch: int, streams: int) -> float:
    """Waves of 24 images: a batch that just begins a new wave leaves most of it empty."""
    images = batch * streams
    return 3000 * images / (24 * ceil(images / 24)) * images / (images + 10)


def second_rise(batch: int, streams: int) -> float:
    """A plateau, then another algorithm from batch 24 on."""
    return (1200 if batch < 24 else 1800) * (batch + 1) / (batch + 2) * (1 + 0.1 * (streams == 2))


def many_streams(batch: int, streams: int) -> float:
    """A CPU: small batches on many streams win, larger batches fall out of the cache."""
    return 500 * streams**0.8 / (1 + 0.06 * batch)


def hole(batch: int, streams: int) -> float:
    """Rising, with one batch size that the library has a bad kernel for."""
    return saturating(batch, streams) * (0.5 if batch == 8 else 1.0)


SURFACES: dict[str, Surface] = {
    one.__name__: one for one in (saturating, peaked, sawtooth, second_rise, many_streams, hole)
}


def memory_mb(batch: int, streams: int) -> float:
    """What the machines take: 500 + streams × (100 + 20 a image)."""
    return 500.0 + streams * (100.0 + 20.0 * batch)


@dataclass
class Machine:
    """Answers like `Bench.measure`; `asked` has every pair in the order it was measured.

    `refuses`: pairs that do not run. `watched`: what the watcher says of every point.
    """

    surface: Surface
    noise: float = 0.0
    seed: int = 0
    refuses: Callable[[int, int], bool] = lambda batch, streams: False
    watched: Observed = field(default_factory=lambda: Observed(CLEAN))
    asked: list[Pair] = field(default_factory=list)
    _known: dict[Pair, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def call_ms(self, batch: int, streams: int) -> float:
        """The true time of a call, by Little's law: images in flight over images per second."""
        return 1000 * batch * streams / self.surface(batch, streams)

    def measure(self, pairs: Sequence[Pair], rounds: int) -> list[Point]:
        """Return noisy points with all the rounds so far."""
        return [self._measured(pair, rounds) for pair in pairs]

    def _measured(self, pair: Pair, rounds: int) -> Point:
        self.asked.append(pair)
        if self.refuses(*pair):
            return Point(*pair, refusal="out of memory")
        made = Point(*pair, rounds=tuple(self._round(pair) for _ in range(rounds)), observed=self.watched)
        self._known[pair] = self._known[pair].with_more(made) if pair in self._known else made
        return self._known[pair]

    def _round(self, pair: Pair) -> Round:
        factor = 1 + self.noise * self._random.standard_normal()
        per_s = self.surface(*pair) * factor
        calls = self.call_ms(*pair) / factor * np.linspace(0.98, 1.02, 11)
        return Round(per_s, tuple(calls.tolist()), host_memory_mb=memory_mb(*pair))
