"""Measurements of a search: each is made once, kept, told, and counted against the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace

from vitesse.precision.search.found import Blocks, Score, Speed, Trial
from vitesse.precision.search.subject import Subject
from vitesse.precision.search.trials import TrialStore
from vitesse.run import key_of

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

    def race(self, entrants: Collection[tuple[Subject, Blocks]]) -> list[Speed]:
        """Return the speeds of sets, in their order, from one run in which they met each other and the FP32 build.

        Trials of these sets that were made before carry them from now on.
        """
        names = [key_of((subject.key, sorted(blocks))) for subject, blocks in entrants]
        kept = self.store.finished("race", sorted(names))
        if kept is None:
            built = [subject.lowered(blocks) for subject, blocks in entrants]
            subject = next(subject for subject, _ in entrants)
            found = subject.race(dict(zip(names, built, strict=True)))
            kept = {name: asdict(speed) for name, speed in found.items()}
            self.store.finish(kept, "race", sorted(names))
        speeds = [Speed(**kept[name]) for name in names]
        for (subject, blocks), speed in zip(entrants, speeds, strict=True):
            for at, trial in self._trials.items():
                if at[:2] == (subject.key, blocks):
                    self._trials[at] = replace(trial, speed=speed)
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
