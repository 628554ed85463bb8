"""What a cause is: how it is recognised, in what words, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from vitesse.diagnose.case import Case


class Confidence(IntEnum):
    """How sure a cause is: tried out; it explains the first wrong tensor; or it is there and may matter."""

    POSSIBLE = 1
    LIKELY = 2
    PROVEN = 3


@dataclass(frozen=True)
class Suspicion:
    """What speaks for a cause in this case; `tensor`: where, the first wrong one if empty."""

    confidence: Confidence
    text: str
    tensor: str = ""


@dataclass(frozen=True)
class Cause:
    """One known way in which a model goes wrong.

    Args:
        id: its name in JSON.
        title: what it is, in a few words.
        evidence: what is looked at, for the documentation.
        remedy: the command that mends it; {model}, {against} and {data} stand for the user's own.
        find: looks for it; None where nothing speaks for it.
        hazard: the graph is right here and goes wrong in another runtime; asked of healthy graphs, too.
    """

    id: str
    title: str
    evidence: str
    remedy: str
    find: Callable[[Case], Suspicion | None]
    hazard: bool = False


def tried(cured: bool, found: str) -> Suspicion:
    """Return a suspicion that was tried out where `cured`, else one that explains what is seen."""
    if cured:
        return Suspicion(Confidence.PROVEN, f"{found}; with that changed, the outputs agree")
    return Suspicion(Confidence.LIKELY, found)
