"""A subject whose true costs and gains are known, and which counts what it was asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitesse.artifact import Artifact, Provenance
from vitesse.precision.search import Blocks, Pace, Score, Speed
from vitesse.spec import ModelSpec


class Interrupted(Exception):
    """Stands for Ctrl-C."""


# By key: two subjects that race each other run at their own speeds.
MADE: dict[str, FakeSubject] = {}


@dataclass
class FakeSubject:
    """Points lost and milliseconds saved add up over the lowered blocks.

    overhead_ms: what lowering anything costs at first. noise: half the width of every interval, as a share of the gain.
    interrupt_at: the trial before which the process dies. seconds: that one trial takes on `clock`.
    """

    points: Mapping[str, float]
    saved_ms: Mapping[str, float]
    spec: ModelSpec
    original_ms: float = 100.0
    overhead_ms: float = 0.0
    noise: float = 0.01
    key: str = "fake"
    number: str = "int8"
    runtime: str = "onnxruntime"
    metric: str = "coco_ap"
    original: float = 0.8
    images: int = 400
    interrupt_at: int | None = None
    seconds: float = 0.0
    profiled: bool = True
    pace: Pace = field(default_factory=lambda: Pace(0.01, 0.001, 0.1))
    now: float = 0.0
    scored: list[tuple[Blocks, int]] = field(default_factory=list)
    raced: list[frozenset[Blocks]] = field(default_factory=list)

    def __post_init__(self) -> None:
        MADE[self.key] = self

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(self.points)

    @property
    def shares(self) -> Mapping[str, float]:
        return {name: 1 / len(self.points) for name in self.points}

    def clock(self) -> float:
        return self.now

    def lowered(self, blocks: Blocks) -> Artifact:
        name = "+".join(sorted(blocks))
        return Artifact(Path(self.key), name, 0, self.spec, Provenance("int8"))

    def score(self, artifact: Artifact, images: int) -> Score:
        if self.interrupt_at is not None and len(self.scored) == self.interrupt_at:
            raise Interrupted
        blocks = self._blocks(artifact)
        self.now += self.seconds
        self.scored.append((blocks, images))
        return Score(self.true_drop(blocks), math.sqrt(self.true_drop(blocks)), images)

    def race(self, artifacts: Mapping[str, Artifact]) -> Mapping[str, Speed]:
        self.raced.append(frozenset(map(self._blocks, artifacts.values())))
        return {
            name: MADE[artifact.path.name].true_speed(self._blocks(artifact))
            for name, artifact in artifacts.items()
        }

    def gains(self, artifact: Artifact) -> Mapping[str, float] | None:
        return dict(self.saved_ms) if self.profiled else None

    def true_drop(self, blocks: Blocks) -> float:
        return sum(self.points[name] for name in blocks)

    def true_ms(self, blocks: Blocks) -> float:
        return (
            self.original_ms + (self.overhead_ms if blocks else 0) - sum(self.saved_ms[one] for one in blocks)
        )

    def true_speed(self, blocks: Blocks) -> Speed:
        gain = self.original_ms / self.true_ms(blocks)
        return Speed(
            gain, gain * (1 - self.noise), gain * (1 + self.noise), self.true_ms(blocks), self.original_ms
        )

    def _blocks(self, artifact: Artifact) -> Blocks:
        return frozenset(artifact.sha256.split("+"))
