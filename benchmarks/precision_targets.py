"""What each precision may cost on labelled data, and whether a ledger's rows keep it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitesse.ledger import Ledger, Row, Verdict
from vitesse.verify.gate import Limits

LABELLED = ("coco_ap", "top1")
# How `precision.quantize` begins the name of the count among a row's changes.
SHARE = "percent of Conv and Linear operations in "


@dataclass(frozen=True)
class Target:
    """`max_drop` in points of AP or top-1; `min_share`: percent of the FLOPs of all convolutions and linear layers."""

    case: str
    precision: str
    max_drop: float
    min_share: int = 0


TARGETS = (
    Target("detr_fashion", "FP16", 0.1),
    Target("vit_fashion", "FP16", 0.1),
    Target("deimv2", "FP16", 0.1),
    Target("vit_fashion", "INT8", 0.3),
    Target("detr_fashion", "INT8", 0.5, min_share=70),
    Target("deimv2", "INT8", 0.5),
    Target("vit_fashion", "FP8", 0.2),
)


@dataclass(frozen=True)
class Judged:
    """A target and the row that comes nearest to it; `met` is None where no row of that precision was measured."""

    target: Target
    row: Row | None
    met: bool | None


def precision_of(stage: str) -> str:
    """The numbers a step computes with, by its name: FP32, FP16, BF16, INT8 or FP8.

    What a runtime's own quantiser makes, `nncf:openvino`, is INT8.
    """
    parts = re.split("[:+]", stage)
    for name in ("fp16", "bf16", "fp8", "int8"):
        if name in parts:
            return name.upper()
    return "INT8" if parts[0] == "nncf" else "FP32"


def share_of(row: Row) -> int | None:
    """Percent of the FLOPs of all convolutions and linear layers that a step lowered; None where it does not say."""
    return next((count for name, count in row.changes.items() if name.startswith(SHARE)), None)


def judged(target: Target, ledger: Ledger | None) -> Judged:
    """Hold a ledger against a target.

    Of the rows of that precision with a known loss on labelled data, a broken one aside, the one that loses least among
    those that lower enough counts, one that passed before others; where none lowers enough, the one that lowers most,
    and the target is not met.
    """
    rows = [] if ledger is None else [row for row in ledger.rows if _counts(row, target.precision)]
    if not rows:
        return Judged(target, None, None)
    enough = [row for row in rows if (share_of(row) or 0) >= target.min_share]
    if not enough:
        return Judged(target, max(rows, key=lambda row: share_of(row) or 0), False)
    best = min(enough, key=lambda row: (_drop(row), row.verdict is not Verdict.PASS))
    return Judged(target, best, Limits(max_drop=target.max_drop).allow(_drop(best)))


def target_table(ledgers: Mapping[str, Ledger], titles: Mapping[str, str]) -> str:
    """Every target with what was measured; a test recomputes the last column from the others."""
    lines = [
        "| precision | model | may lose, points | lost | lowered, % of FLOPs (at least) | step | the gate said | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        found = judged(target, ledgers.get(target.case))
        begin = [target.precision, titles[target.case], f"{target.max_drop:g}"]
        lines.append(f"| {' | '.join([*begin, *_measured(found)])} |")
    return "\n".join(lines)


def _measured(found: Judged) -> Sequence[str]:
    row, least = found.row, found.target.min_share
    asked = f" ({least})" if least else ""
    if row is None:
        return "not run", f"not run{asked}" if least else "–", "–", "–", "not run"
    share = share_of(row)
    lowered = "–" if share is None and not least else f"{'unknown' if share is None else share}{asked}"
    return f"{_drop(row):.2f}", lowered, row.stage, row.verdict.value, "yes" if found.met else "no"


def _counts(row: Row, precision: str) -> bool:
    accuracy = row.accuracy
    return (
        precision_of(row.stage) == precision
        and row.verdict is not Verdict.FAIL
        and accuracy is not None
        and accuracy.metric in LABELLED
        and accuracy.drop is not None
    )


def _drop(row: Row) -> float:
    """Points lost, without the rounding errors of the subtraction: two images of 2,000 are 0.1 points, not more."""
    assert row.accuracy is not None
    assert row.accuracy.drop is not None
    return round(row.accuracy.drop, 6)
