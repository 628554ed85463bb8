"""Measurements of a search: each is made once, kept, told, and counted against the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace

from vitesse.precision.search.found import Blocks, Score, Speed, Trial
from vitesse.precision.search.subject import Subject
from vitesse.precision.search.trials import TrialStore

Clock = Callable[[], float]


class OutOfTime(Exception):
    """The minutes are used up; what was measured until then counts. Never leaves the search."""


@dataclass
class Measuring:
    """Scores and races sets of blocks.

    until: on `clock`, in seconds; no scoring begins after it but the very first. Races that decide are always made.
    told: hears every trial as soon as it is known, also one that an earlier call had finished.
    """

    store: TrialStore
    until: float
    told: Callable[[Trial], None]
    clock: Clock = time.monotonic
    _trials: dict[tuple[str, Blocks, int], Trial] = field(default_factory=dict)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All so far, in the order in which they were made."""
        return tuple(self._trials.values())

    def known(self, subject: Subject, blocks: Blocks, images: int) -> Trial | None:
        """Return a trial that was made in this search."""
        return self._trials.get((subject.key, blocks, images))

    def score(self, subject: Subject, variant: str, blocks: Blocks, images: int) -> Trial:
        """Return the trial of a set on so many images; it is made only if that never was done.

        Raises:
            OutOfTime: it would have to be made, and the time is over.
            ModelError, BackendError: the set cannot be lowered, or not run.
        """
        at = subject.key, blocks, images
        if at in self._trials:
            return self._trials[at]
        parts = ("score", subject.key, sorted(blocks), images)
        kept = self.store.finished(*parts)
        if kept is None:
            if self._trials and self.clock() >= self.until:
                raise OutOfTime
            began = self.clock()
            score = subject.score(subject.lowered(blocks), images)
            kept = {"score": asdict(score), "seconds": self.clock() - began}
            self.store.finish(kept, *parts)
        trial = Trial(blocks, Score(**kept["score"]), seconds=kept["seconds"], variant=variant)
        self._trials[at] = trial
        self.told(trial)
        return trial

    def race(self, subject: Subject, sets: Collection[Blocks], images: int) -> Mapping[Blocks, Speed]:
        """Return the speeds of sets, from one run in which they met each other and the FP32 build."""
        parts = ("race", subject.key, sorted(sorted(blocks) for blocks in sets))
        kept = self.store.finished(*parts)
        names = {"+".join(sorted(blocks)): blocks for blocks in sets}
        if kept is None:
            artifacts = {name: subject.lowered(blocks) for name, blocks in names.items()}
            kept = {name: asdict(speed) for name, speed in subject.race(artifacts).items()}
            self.store.finish(kept, *parts)
        speeds = {names[name]: Speed(**speed) for name, speed in kept.items()}
        for blocks, speed in speeds.items():
            at = subject.key, blocks, images
            if at in self._trials:
                self._trials[at] = replace(self._trials[at], speed=speed)
        return speeds

    def gains(self, subject: Subject, blocks: Blocks) -> Mapping[str, float] | None:
        """Return what each of the lowered blocks saves, milliseconds of a call; None where that cannot be told."""
        parts = ("gains", subject.key, sorted(blocks))
        kept = self.store.finished(*parts)
        if kept is None:
            found = subject.gains(subject.lowered(blocks))
            kept = {"gains": None if found is None else dict(found)}
            self.store.finish(kept, *parts)
        gains: Mapping[str, float] | None = kept["gains"]
        return gains
