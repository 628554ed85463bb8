"""The rows of the table and of the page: groups in the order of what they cost, and the units that can go."""

from __future__ import annotations

from dataclasses import dataclass

from vitesse.compress.importance.record import Importance
from vitesse.compress.importance.sensitivity import CHEAP, Curve, Together
from vitesse.compress.importance.units import Group, Kind

QUARTER = 0.25
PLURAL = {
    Kind.CHANNELS: "channels",
    Kind.RESIDUAL: "residual channels",
    Kind.MLP: "MLP units",
    Kind.HEADS: "heads",
    Kind.LAYERS: "layers",
    Kind.QUERIES: "queries",
}
METRICS = {"coco_ap": "COCO AP", "top1": "top-1", "agreement": "agreement"}


@dataclass(frozen=True)
class GroupRow:
    """A group and what is known about it; `curve` is None where nothing was measured."""

    group: Group
    curve: Curve | None

    @property
    def quarter(self) -> float | None:
        """Points lost without a quarter of its units, or without what a quarter is rounded to."""
        if self.curve is None or not self.curve.shares:
            return None
        least = min(self.curve.shares)  # of three layers a quarter is one of them
        return self.curve.drop_at(max(QUARTER, least))


def rows(found: Importance) -> tuple[GroupRow, ...]:
    """Return the groups: where measured, those first that lose most without a quarter; else in the network's order."""
    measured = {} if found.sensitivity is None else found.sensitivity.curves
    listed = [
        GroupRow(group, measured.get(group.name)) for group in found.groups if group.name in found.scores
    ]
    if not measured:
        return tuple(listed)
    return tuple(sorted(listed, key=lambda row: -(row.quarter if row.quarter is not None else float("-inf"))))


def points(drop: float) -> str:
    """Write a drop in points with its sign: "−0.42", and "+0.10" where the network is better without."""
    text = f"{abs(drop):.2f}"
    return "0.00" if text == "0.00" else f"{'−' if drop > 0 else '+'}{text}"


def measured_on(found: Importance) -> str:
    """Return the sentence about what was scored and measured."""
    how = f"scores by {found.method}" + (f" on {found.images} images" if found.images else "")
    if found.sensitivity is None:
        return f"{how}; nothing was masked (--sensitivity does)"
    whole = (
        f"{METRICS[found.metric]} of the whole network {found.sensitivity.base:.2f} on {found.scored} images"
    )
    grain = f", of which each is worth {100 / found.scored:.2g} points" if found.metric != "coco_ap" else ""
    return f"{how}; {whole}{grain}"


def can_go(one: Together, named: int = 8) -> str:
    """Return the sentence about units that cost next to nothing alone."""
    shown = ", ".join(f"{group} {index}" for group, index in one.units[:named])
    left = len(one.units) - named
    more = f" and {left} more" if left > 0 else ""
    return (
        f"{len(one.units)} {PLURAL[one.kind]} cost {CHEAP:g} points or less each when left out alone, all of them at "
        f"once {points(one.drop)}: {shown}{more}"
    )


def ranked_alike(found: Importance) -> str:
    """Return the sentence about the rank agreement of scores and masking; empty where none was measured."""
    if found.sensitivity is None or not found.sensitivity.agreement:
        return ""
    each = [f"{PLURAL[kind]} {value:+.2f}" for kind, value in found.sensitivity.agreement.items()]
    return (
        "rank agreement of the scores with the points that each unit costs alone (Spearman, −1 to 1): "
        + ", ".join(each).replace("-", "−")
    )
