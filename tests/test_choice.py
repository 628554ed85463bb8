"""The choice at the end, on measured times that are made up here."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vitesse.artifact import Artifact, Provenance
from vitesse.assess import Assessor
from vitesse.backends.protocol import LoadOptions
from vitesse.benchmark.latency import Interleaved, WarmUp
from vitesse.choice import Accepted, choose
from vitesse.ledger import Latency, Ledger, Row, Verdict
from vitesse.measure import BASELINE, Candidate
from vitesse.recipe import Recipe
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((8, 8)))
LEDGER = Ledger(
    "m.onnx",
    "cpu",
    tuple(
        Row(stage, Verdict.PASS, "", latency_ms=Latency(10, 11, 12)) for stage in ("source", "fuse", "int8")
    ),
)


def accepted(index: int, stage: str, gain: float) -> Accepted:
    artifact = Artifact(Path(f"{stage}.onnx"), stage, 1, SPEC, Provenance(stage))
    return Accepted(index, stage, Candidate(artifact, LoadOptions()), gain)


def assessor(times_ms: dict[str, list[float]], budget_ms: float | None = None) -> Assessor:
    """An assessor whose race gives these times, one call a round."""

    def race(entrants: dict[str, Candidate]) -> Interleaved:
        rounds = {name: tuple((ms,) for ms in times_ms[name]) for name in entrants}
        return Interleaved(rounds, dict.fromkeys(entrants, WarmUp(3, True, 1.0)), 1.0, 0.0, 1.0)

    made = SimpleNamespace(
        race=race, baseline=accepted(0, "source", 1.0).candidate, recipe=Recipe(latency_budget_ms=budget_ms)
    )
    return cast(Assessor, made)


STEADY: dict[str, list[float]] = {BASELINE: [10.0] * 12, "fuse": [8.0] * 12, "int8": [5.0] * 12}
BOTH = (accepted(0, "source", 1.0), accepted(1, "fuse", 1.3), accepted(2, "int8", 1.9))


def test_the_fastest_of_the_last_run_is_chosen_not_of_the_rows() -> None:
    done = choose(LEDGER, BOTH, assessor({**STEADY, "fuse": [4.0] * 12}))
    assert done.chosen == 1
    assert done.final is not None
    assert done.final["gain"] == pytest.approx(2.5)
    assert done.final["gains"] == pytest.approx({"fuse": 2.5, "int8": 2.0})
    assert (done.final["baseline_p50_ms"], done.final["chosen_p50_ms"]) == (10.0, 4.0)


def test_what_is_not_surely_faster_than_the_original_is_not_chosen() -> None:
    noisy = [9.0, 11.5] * 6
    done = choose(LEDGER, BOTH, assessor({**STEADY, "fuse": noisy, "int8": noisy}))
    assert done.chosen == 0
    assert done.final is not None
    assert done.final["gain"] == 1.0


def test_the_original_stays_when_no_step_passed() -> None:
    done = choose(LEDGER, BOTH[:1], assessor(STEADY))
    assert done.chosen == 0
    assert done.final is None


@pytest.mark.parametrize(
    ("times", "met", "reason"),
    [([5.0] * 12, True, ""), ([5.0] * 11 + [90.0], True, "p99 is"), ([20.0, 30.0] * 6, False, "")],
)
def test_a_latency_budget_is_answered_by_the_median_and_warns_of_the_tail(
    times: list[float], met: bool, reason: str
) -> None:
    slow_original: dict[str, Any] = {**STEADY, BASELINE: [50.0] * 12, "int8": times}
    done = choose(LEDGER, BOTH[2:], assessor(slow_original, budget_ms=16.0))
    assert done.latency_budget is not None
    assert done.latency_budget["budget_ms"] == 16.0
    assert done.latency_budget["met"] is met
    assert done.latency_budget["reason"].startswith(reason)


def test_a_budget_that_could_not_be_measured_is_unknown() -> None:
    bare = replace(LEDGER, rows=(Row("source", Verdict.UNKNOWN, ""),))
    done = choose(bare, (), assessor(STEADY, budget_ms=16.0))
    assert done.latency_budget is not None
    assert done.latency_budget["met"] is None
    assert done.latency_budget["reason"] == "no latency was measured"
