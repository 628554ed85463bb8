"""The choice at the end: the finalists and the original in one interleaved run; the fastest that is surely faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitesse.assess import Assessor
from vitesse.benchmark.latency import Interleaved
from vitesse.ledger import Ledger
from vitesse.measure import BASELINE, Candidate

FINALISTS = 3


@dataclass(frozen=True)
class Accepted:
    """A step that passed: its row's number, its stage, what runs, and its gain over the original."""

    index: int
    stage: str
    candidate: Candidate
    gain: float


def choose(ledger: Ledger, accepted: Sequence[Accepted], assessor: Assessor) -> Ledger:
    """Return the ledger with `chosen`, `final` and `latency_budget` set.

    Rows were measured minutes apart; the finalists meet once more in one run. Whatever is not faster than the original
    beyond noise is not chosen: then the original stays, as row 0.
    """
    finalists = sorted((one for one in accepted if one.index > 0), key=lambda one: -one.gain)[:FINALISTS]
    if not finalists:
        return replace(ledger, chosen=0, latency_budget=_budget(ledger, assessor, None, BASELINE))
    entrants = {BASELINE: assessor.baseline} | {one.stage: one.candidate for one in finalists}
    run = assessor.race(entrants)
    best = max(finalists, key=lambda one: run.ratio(BASELINE, one.stage).value)
    faster = run.ratio(BASELINE, best.stage).faster
    name = best.stage if faster else BASELINE
    return replace(
        ledger,
        chosen=best.index if faster else 0,
        final=_final(run, name, [one.stage for one in finalists]),
        latency_budget=_budget(ledger, assessor, run, name),
    )


def _final(run: Interleaved, name: str, finalists: Sequence[str]) -> dict[str, Any]:
    ratio = run.ratio(BASELINE, name)
    return {
        "gain": ratio.value,
        "gain_spread": list(ratio.spread),
        "gain_interval": [value if value < 1e9 else None for value in ratio.interval],
        "rounds": ratio.rounds,
        "baseline_p50_ms": run.latency(BASELINE).p50,
        "chosen_p50_ms": run.latency(name).p50,
        "chosen_p99_ms": run.latency(name).p99,
        "gains": {stage: run.ratio(BASELINE, stage).value for stage in finalists},
        "foreign_cores": run.foreign_cores,
    }


def _budget(ledger: Ledger, assessor: Assessor, run: Interleaved | None, name: str) -> dict[str, Any] | None:
    wanted = assessor.recipe.latency_budget_ms
    if wanted is None:
        return None
    latency = ledger.rows[0].latency_ms if run is None else run.latency(name)
    if latency is None:
        return {"budget_ms": wanted, "p50_ms": None, "met": None, "reason": "no latency was measured"}
    met = latency.p50 <= wanted
    reason = "" if latency.p99 <= wanted or not met else f"p99 is {latency.p99:.2f} ms, above the budget"
    return {"budget_ms": wanted, "p50_ms": latency.p50, "p99_ms": latency.p99, "met": met, "reason": reason}
