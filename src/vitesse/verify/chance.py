"""What an answer that looks at no image gets right, and whether a model gets clearly more than that.

A model that does not knows nothing that a step could be seen to lose, or that a student could learn.
"""

from __future__ import annotations

from collections import Counter

from vitesse.data.split import Split

# Points that a model gets right by accident, whatever it is asked.
MOST_OF_NOTHING = 1.0
# Of what chance gets right, and of what it leaves wrong: whoever is above it by less may have been lucky.
_MARGIN = 0.2


def chance_of(metric: str, split: Split) -> float:
    """Return the points, 0..100, of the answer that is the same for every image.

    Of top-1 it is the share of the most frequent class. Boxes are not found so, and agreement is with answers
    that stand for no truth: 0.
    """
    if metric != "top1":
        return 0.0
    (_, most), *_ = Counter(sample.label for sample in split.samples).most_common(1)
    return 100 * most / len(split)


def above_chance(score: float, chance: float, accident: float = MOST_OF_NOTHING) -> bool:
    """Whether a score is clearly above chance and above what is got right by accident; all in points, 0..100.

    Clearly: by a fifth of chance, or of what it leaves wrong where that is less. Nothing is clearly above 100.
    """
    return score > max(chance + _MARGIN * min(chance, 100 - chance), accident)
