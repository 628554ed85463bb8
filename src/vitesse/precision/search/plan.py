"""How many images the trials of a search see, so that it stays inside its minutes, and how long it will take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitesse.precision.search.subject import Pace
from vitesse.precision.search.words import duration_of
from vitesse.recipe import SearchOptions

# Shares of the time for sensitivities with variants, and for whole sets; what is left is for races and surprises.
PROBING, SCORING = 0.4, 0.4
# After this share of the minutes no further block is looked at alone: a set has to be found from those that are known.
SENSING = 0.6
# Fewer images say too little: of the outputs' distance, and of accuracy.
FEWEST_PROBED, FEWEST_SCORED = 8, 16
# More would say little more: single blocks and variants are compared by the outputs' distance, which is not noisy.
MOST_PROBED = 32
# After halving down the order, so many sets are tried to win back speed.
REFINEMENTS = 6
RACES = 3


@dataclass(frozen=True)
class Plan:
    """What lies ahead if the first set is not good enough at once.

    scored: images that judge a set; probed: images on which single blocks and variants are compared.
    sets, probes: how many of each are expected. seconds: an estimate, on the safe side, as lowered blocks run faster.
    first_s: of it, until everything lowered has been judged, where a search often ends.
    """

    scored: int
    probed: int
    sets: int
    probes: int
    seconds: float
    first_s: float

    def words(self) -> str:
        """Say it in a sentence, before the search begins."""
        return (
            f"about {duration_of(self.first_s)} if everything can be lowered, else about {duration_of(self.seconds)}: "
            f"{self.probes} blocks and variants on {self.probed} images, {self.sets} sets on {self.scored} images"
        )


def plan_for(blocks: int, variants: int, images: int, pace: Pace, options: SearchOptions) -> Plan:
    """Return the plan; on slow models trials see fewer images rather than being fewer.

    Args:
        images: how many there are to score on.
    """
    seconds = 60 * options.minutes
    sets = 2 + math.ceil(math.log2(max(2, blocks))) + REFINEMENTS
    probes = blocks + (variants + 1 if variants else 0)
    scored = _affordable(SCORING * seconds / sets, pace, FEWEST_SCORED, images)
    probed = _affordable(PROBING * seconds / max(1, probes), pace, FEWEST_PROBED, min(MOST_PROBED, scored))
    whole, probe = (pace.build_s + count * pace.image_s for count in (scored, probed))
    total = min(seconds, sets * whole + probes * probe + RACES * pace.race_s)
    return Plan(scored, probed, sets, probes, total, min(seconds, whole + pace.race_s))


def _affordable(seconds: float, pace: Pace, fewest: int, most: int) -> int:
    affordable = (seconds - pace.build_s) / max(pace.image_s, 1e-9)
    return int(min(most, max(fewest, affordable)))
