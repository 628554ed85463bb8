"""The search itself: the fastest set of blocks inside the accuracy budget, by the measured speed of the target.

1. Everything lowered. Inside the budget, surely faster, and no block slower than before: done, after one trial.
2. Where that loses too much, other ways of quantising everything: the one with the least error goes on.
3. What each block saves, from the profiles of both builds. Blocks that save nothing go back at once.
4. What each block costs: lowered alone. Alone, because rounding errors in different blocks are nearly independent, so
   that their squares add up; lowering all but one would hide a mild block under the noise of the others.
5. Back in FP32, the worst cost for its gain first, until the budget is kept: the sets along this order are nested, so
   halving finds the place in log2(n) trials. Then the other way: the best sets by the costs that were learned, and
   single blocks that were reverted, as long as the budget is kept.
6. The fastest few are raced, interleaved with the FP32 build. The fastest that is surely faster is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from vitesse.precision.search.found import Blocks, Speed, Trial
from vitesse.precision.search.knapsack import best_within
from vitesse.precision.search.measuring import Measuring, OutOfTime
from vitesse.precision.search.plan import REFINEMENTS, Plan
from vitesse.precision.search.subject import Subject
from vitesse.precision.search.words import listed, speed_of

# Of many sets the search keeps one whose drop came out low, partly by chance, and on few images. A fifth of the budget
# is held back for that; all validation images decide later.
MARGIN = 0.2
# A block counts as slower only by more than this share of the whole call; below, the profiles cannot tell.
SLOWER = 0.005
# Errors of the blocks add up only roughly: sets that promise a little more than the budget are worth a trial.
HOPE = 1.3
PROPOSALS = 3
FINALISTS = 4
# After a refusal the next set has to promise this share of the refused one's cost: a step that one sees beyond noise.
CAREFUL = 0.75
# Another number that is faster may have this much more error before accuracy counts for more.
SIMILAR_ERROR = 1.25


@dataclass
class Exploration:
    """One search on its way: what is known about the blocks, and which set is the best so far."""

    ways: Mapping[str, Callable[[], Subject]]
    plan: Plan
    measuring: Measuring
    max_drop: float
    refused: frozenset[Blocks]
    sense_until: float
    variant: str = ""
    gain: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    fates: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _ways: dict[str, Subject] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        """The way of quantising that is searched now."""
        return self.way(self.variant)

    def way(self, name: str) -> Subject:
        """Return one of the ways, made when it is first asked for: smoothing calibrates anew."""
        if name not in self._ways:
            self._ways[name] = self.ways[name]()
        return self._ways[name]

    @property
    def allowed(self) -> float:
        """What a set may lose on the search images, in points."""
        return (1 - MARGIN) * self.max_drop

    @property
    def everything(self) -> Blocks:
        """All blocks."""
        return frozenset(self.subject.blocks)

    def explore(self) -> None:
        """Measure until the answer is known or the time is over."""
        try:
            start = self._begin()
            if start:
                start = self._sense(start)
                self._refine(self._revert(start), start)
        except OutOfTime:
            self.notes.append("the time was over before all was tried; a longer search may find more")
        self._final()

    def _begin(self) -> Blocks:
        """Try everything, choose the way, drop what saves nothing; return what is worth going on with, or nothing."""
        whole = self._try(self.everything)
        if not self.inside(whole) and len(self.ways) > 1:
            self._choose_way()
            whole = self._try(self.everything)
        speed = whole.speed or self._race([whole.blocks])[whole.blocks]
        self._learn_gains(speed)
        slow = SLOWER * speed.baseline_ms
        if self.inside(whole) and speed.faster and min(self.gain.values()) >= -slow:
            return frozenset()
        saving = frozenset(name for name, ms in self.gain.items() if ms > 0)
        if not saving:
            return frozenset()
        if saving != whole.blocks:
            speeds = self._race([whole.blocks, saving])
            if speeds[whole.blocks].low > speeds[saving].high:
                self.notes.append(
                    "blocks that seemed to save nothing by themselves do so together: they stayed in"
                )
                saving = whole.blocks
            else:
                reverted = dict.fromkeys(whole.blocks - saving, "back in FP32: not faster lowered")
                self.fates |= reverted
            speed = speeds[saving]
        # A part of what does not pay as a whole does not pay either.
        return saving if speed.gain > 1.0 and not self.inside(self._try(saving)) else frozenset()

    def _choose_way(self) -> None:
        """Take the way of quantising everything with the least error; of two numbers ask the target which is faster."""
        best: dict[str, Trial] = {}
        for name in self.ways:
            way = self.way(name)
            trial = self.measuring.score(way, name, self.everything, self.plan.probed)
            known = best.get(way.number)
            if known is None or trial.score.error < known.score.error:
                best[way.number] = trial
        ordered = sorted(best.values(), key=lambda one: one.score.error)
        self.variant = ordered[0].variant
        if len(ordered) > 1:
            self._choose_number(ordered)

    def _choose_number(self, ordered: list[Trial]) -> None:
        raced = self.measuring.race([(self.way(trial.variant), self.everything) for trial in ordered])
        speeds = {trial.variant: speed for trial, speed in zip(ordered, raced, strict=True)}
        for trial in ordered[1:]:
            near = trial.score.error <= SIMILAR_ERROR * ordered[0].score.error
            if near and speeds[trial.variant].low > speeds[self.variant].high:
                self.variant = trial.variant
        said = ", ".join(f"{self.way(name).number} {speed_of(speed)}" for name, speed in speeds.items())
        self.notes.append(f"everything lowered, by number: {said}; {self.subject.number} goes on")

    def _learn_gains(self, speed: Speed) -> None:
        """Ask the profiles what each block saves, scaled so that the sum is what the race measured."""
        # From the ratio of the rounds, not from two medians: that is what holds on a machine that drifts.
        measured = speed.baseline_ms * (1 - 1 / speed.gain)
        found = self.measuring.gains(self.subject, self.everything)
        if found is None:
            shares = self.subject.shares or {
                name: 1 / len(self.subject.blocks) for name in self.subject.blocks
            }
            self.gain = {name: measured * shares.get(name, 0.0) for name in self.subject.blocks}
            self.notes.append("what a block saves is the measured gain by its share of the operations")
            return
        total = sum(found.values())
        scale = measured / total if total > 0 and measured > 0 else 1.0
        self.gain = {name: scale * found.get(name, 0.0) for name in self.subject.blocks}

    def _sense(self, start: Blocks) -> Blocks:
        """Lower each block alone, those that save most first; return those whose cost is known."""
        for name in sorted(start, key=lambda one: -self.gain[one]):
            if self.measuring.clock() >= self.sense_until:
                unknown = start - self.cost.keys()
                self.fates |= dict.fromkeys(unknown, "back in FP32: no time was left to see what it costs")
                self.notes.append(
                    f"no time was left to look at {listed(unknown)}; a longer search may find more"
                )
                break
            trial = self.measuring.score(self.subject, self.variant, frozenset({name}), self.plan.probed)
            self.cost[name] = trial.score.error**2
        return frozenset(start & self.cost.keys())

    def _revert(self, start: Blocks) -> Blocks:
        """Return the largest set inside the budget along the order of reverting; empty where none is."""
        order = sorted(start, key=self._price, reverse=True)
        outside, inside = 0, len(order)
        while inside - outside > 1:
            middle = (inside + outside) // 2
            if self.inside(self._try(start - frozenset(order[:middle]))):
                inside = middle
            else:
                outside = middle
        return start - frozenset(order[:inside])

    def _refine(self, best: Blocks, start: Blocks) -> None:
        """Win speed back: first whole sets by the learned costs, then single blocks, cheapest for their gain first."""
        for _ in range(PROPOSALS):
            proposed = best_within(
                {name: self.cost[name] for name in start}, self.gain, self._capacity(best, start)
            )
            if self.saved(proposed) <= self.saved(best):
                break
            best = proposed if self.inside(self._try(proposed)) else best
        tries = 0
        for name in sorted(start - best, key=self._price):
            wider = best | {name}
            known = self.measuring.known(self.subject, wider, self.plan.scored)
            hopeful = self._spent(wider) <= HOPE * self._capacity(best, start)
            if known is None and hopeful and tries < REFINEMENTS - PROPOSALS:
                tries += 1
                best = wider if self.inside(self._try(wider)) else best

    def _price(self, name: str) -> float:
        """What a block costs for what it gains; one that gains nothing, or was measured so, is dearest."""
        return self.cost[name] / max(self.gain[name], 1e-9)

    def _capacity(self, best: Blocks, start: Blocks) -> float:
        """Return how much summed cost the budget bears, by the measured set that came nearest to it."""
        sets = [one for one in self.judged() if one.blocks <= start and one.score.drop > 0]
        outside = [self._spent(one.blocks) for one in sets if not self.inside(one)]
        if not sets:
            return self._spent(best)
        nearest = min(sets, key=lambda one: abs(one.score.drop - self.allowed))
        told = self._spent(nearest.blocks) * self.allowed / nearest.score.drop
        # Never as much as a set that was seen outside, never less than one that was seen inside.
        return max(self._spent(best), min([told, *((1 - 1e-6) * spent for spent in outside)]))

    def _final(self) -> None:
        """Race the sets inside the budget that promise most, in one run."""
        inside = [trial for trial in self.judged() if self.inside(trial)]
        ranked = sorted(inside, key=lambda one: -self.saved(one.blocks))[:FINALISTS]
        if any(trial.speed is None for trial in ranked):
            self._race([trial.blocks for trial in ranked])

    def judged(self) -> list[Trial]:
        """Return the trials of whole sets in the way that was chosen."""
        return [
            trial
            for trial in self.measuring.trials
            if trial.variant == self.variant and trial.score.images == self.plan.scored
        ]

    def _try(self, blocks: Blocks) -> Trial:
        return self.measuring.score(self.subject, self.variant, blocks, self.plan.scored)

    def _race(self, sets: Collection[Blocks]) -> Mapping[Blocks, Speed]:
        return dict(zip(sets, self.measuring.race([(self.subject, one) for one in sets]), strict=True))

    def inside(self, trial: Trial) -> bool:
        """Whether a set keeps the budget, as far as the search can tell."""
        return trial.score.drop <= self.allowed and not self.is_refused(trial.blocks)

    def is_refused(self, blocks: Blocks) -> bool:
        """Whether validation refused this set, one inside it, or one that is not clearly more costly."""
        if any(blocks >= one for one in self.refused):
            return True
        known = [
            self._spent(one)
            for one in self.refused
            if self.cost and one <= self.cost.keys() | self.fates.keys()
        ]
        return bool(known) and self._spent(blocks) > CAREFUL * min(known)

    def _spent(self, blocks: Blocks) -> float:
        return sum(self.cost.get(name, 0.0) for name in blocks)

    def saved(self, blocks: Blocks) -> float:
        """Return the milliseconds of a call that lowering these blocks saves, by the sum over them."""
        return sum(self.gain.get(name, 0.0) for name in blocks)
