"""Which blocks to lower: the fastest set inside the accuracy budget, found by trials that can be interrupted."""

from vitesse.precision.search.found import Blocks, Found, Score, Sensitivity, Speed, Trial, load_found
from vitesse.precision.search.plan import Plan
from vitesse.precision.search.searching import search
from vitesse.precision.search.subject import Pace, Subject
from vitesse.precision.search.trials import TrialStore

__all__ = [
    "Blocks",
    "Found",
    "Pace",
    "Plan",
    "Score",
    "Sensitivity",
    "Speed",
    "Subject",
    "Trial",
    "TrialStore",
    "load_found",
    "search",
]
