from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vitesse.ledger import Parity, Verdict
from vitesse.verify.gate import Evidence, Limits, Speed, StepKind, judge, notes
from vitesse.verify.health import Finding

EQUAL = Parity(max_abs=1e-5, cosine=0.9999999, max_rel=2e-6, worst_output="logits")
FASTER, SAME, SLOWER = Speed(1.3, 1.25, 1.35), Speed(1.0, 0.98, 1.02), Speed(0.885, 0.87, 0.90)
LIMITS = Limits()


def _step(kind: StepKind, **changes: object) -> Evidence:
    step = Evidence(kind, metric="coco_ap", images=300, value=0.82, drop=0.1, parity=EQUAL, speed=FASTER)
    return replace(step, **changes)  # type: ignore[arg-type]


def _judged(kind: StepKind, **changes: object) -> tuple[Verdict, str]:
    return judge(_step(kind, **changes), LIMITS)


STEPS = [StepKind.STRUCTURAL, StepKind.PRECISION, StepKind.BUILD]


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_that_keeps_accuracy_and_is_faster_passes(kind: StepKind) -> None:
    assert _judged(kind) == (
        Verdict.PASS,
        "AP 0.10 points lower, inside the budget, 1.30× as fast as the step before",
    )


def test_a_gain_in_accuracy_is_called_a_gain() -> None:
    assert _judged(StepKind.PRECISION, drop=-0.25)[1].startswith("AP 0.25 points higher")
    assert _judged(StepKind.PRECISION, drop=-1e-9)[1].startswith("AP unchanged")


@pytest.mark.parametrize("kind", [*STEPS, StepKind.SOURCE])
def test_a_fatal_finding_fails_every_step_whatever_the_rest_says(kind: StepKind) -> None:
    finding = Finding("nan", "logits", "the output `logits` holds NaN in 3 of 16 images", 3, "a.jpg")
    assert _judged(kind, findings=(finding,)) == (Verdict.FAIL, finding.text)


def test_a_suspicion_does_not_fail_and_becomes_a_note() -> None:
    finding = Finding(
        "zeros", "boxes", "the output `boxes` is all zeros in 1 of 300 images", 1, "a", fatal=False
    )
    step = _step(StepKind.STRUCTURAL, findings=(finding,))
    assert judge(step, LIMITS)[0] is Verdict.PASS
    assert notes(step, LIMITS) == (finding.text,)


def test_broken_parity_fails_a_structural_step_and_names_the_first_diverging_tensor() -> None:
    parity = Parity(0.4, 1.0, 0.05, "logits", first_diverging="`mixed` (made by MatMul node `mix`)")
    verdict, reason = _judged(StepKind.STRUCTURAL, parity=parity)
    assert verdict is Verdict.FAIL
    assert "`logits` by up to 5 % (allowed 0.1 %)" in reason
    assert "first diverging: `mixed` (made by MatMul node `mix`)" in reason


@pytest.mark.parametrize(
    "parity",
    [
        replace(EQUAL, max_rel=2e-3),
        replace(EQUAL, cosine=0.9998),
        replace(EQUAL, max_rel=math.nan),
        replace(EQUAL, cosine=math.nan),
        replace(EQUAL, max_rel=None),
    ],
)
def test_parity_just_outside_or_not_a_number_fails_a_structural_step(parity: Parity) -> None:
    assert _judged(StepKind.STRUCTURAL, parity=parity)[0] is Verdict.FAIL


def test_parity_at_the_limit_is_inside() -> None:
    at_limit = replace(EQUAL, max_rel=1e-3, cosine=0.9999)
    assert _judged(StepKind.STRUCTURAL, parity=at_limit)[0] is Verdict.PASS


def test_a_build_may_differ_more_than_a_structural_step_and_not_without_bound() -> None:
    assert _judged(StepKind.BUILD, parity=replace(EQUAL, max_rel=0.02))[0] is Verdict.PASS
    assert _judged(StepKind.BUILD, parity=replace(EQUAL, max_rel=0.2))[0] is Verdict.FAIL
    assert _judged(StepKind.BUILD, parity=replace(EQUAL, cosine=0.9))[0] is Verdict.FAIL


def test_a_precision_step_is_not_asked_for_parity() -> None:
    assert _judged(StepKind.PRECISION, parity=replace(EQUAL, max_rel=0.3))[0] is Verdict.PASS
    assert _judged(StepKind.PRECISION, parity=None)[0] is Verdict.PASS


@pytest.mark.parametrize("kind", [StepKind.STRUCTURAL, StepKind.BUILD])
def test_outputs_that_were_not_compared_are_unknown(kind: StepKind) -> None:
    assert _judged(kind, parity=None, parity_reason="the reference crashed") == (
        Verdict.UNKNOWN,
        "the outputs were not compared: the reference crashed",
    )


@pytest.mark.parametrize("kind", STEPS)
def test_losing_more_than_the_budget_is_rejected_in_points(kind: StepKind) -> None:
    assert _judged(kind, drop=12.4) == (Verdict.REJECTED, "loses 12.4 points of AP (budget 0.5)")


def test_exactly_the_budget_is_inside() -> None:
    assert _judged(StepKind.PRECISION, drop=0.5)[0] is Verdict.PASS
    assert _judged(StepKind.PRECISION, drop=0.51) == (
        Verdict.REJECTED,
        "loses 0.51 points of AP (budget 0.5)",
    )


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("drop", [None, math.nan])
def test_unknown_accuracy_is_never_a_pass(kind: StepKind, drop: float | None) -> None:
    assert _judged(kind, drop=drop, accuracy_reason="no images") == (
        Verdict.UNKNOWN,
        "accuracy is unknown: no images",
    )


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("speed", [None, Speed(math.nan, 0.9, 1.1), Speed(1.2, math.nan, 1.3)])
def test_unknown_speed_is_never_a_pass(kind: StepKind, speed: Speed | None) -> None:
    verdict, reason = _judged(kind, speed=speed, speed_reason="--no-benchmark")
    assert verdict is Verdict.UNKNOWN
    assert reason == "speed was not measured: --no-benchmark"


def test_a_structural_step_as_fast_as_before_passes() -> None:
    assert _judged(StepKind.STRUCTURAL, speed=SAME)[0] is Verdict.PASS
    assert _judged(StepKind.STRUCTURAL, speed=Speed(0.97, 0.90, 1.03))[0] is Verdict.PASS
    assert _judged(StepKind.STRUCTURAL, speed=Speed(0.995, 0.993, 0.997))[0] is Verdict.PASS


@pytest.mark.parametrize("kind", STEPS)
def test_a_slower_step_is_rejected_with_the_percentage(kind: StepKind) -> None:
    assert _judged(kind, speed=SLOWER) == (Verdict.REJECTED, "13 % slower than the step before")


@pytest.mark.parametrize("kind", [StepKind.PRECISION, StepKind.BUILD])
def test_precision_and_builds_must_be_faster_beyond_noise(kind: StepKind) -> None:
    verdict, reason = _judged(kind, speed=SAME)
    assert verdict is Verdict.REJECTED
    assert reason == "not faster than the step before: 1.00× (95 % interval 0.98 to 1.02)"
    assert _judged(kind, speed=Speed(1.5, 0.0, math.inf))[0] is Verdict.UNKNOWN


def test_accuracy_is_named_before_speed_when_both_are_bad() -> None:
    assert _judged(StepKind.PRECISION, drop=3.0, speed=SLOWER)[1].startswith("loses 3.0 points")


def test_the_source_passes_with_its_accuracy_and_is_unknown_without() -> None:
    source = {"drop": None, "parity": None, "speed": None}
    assert _judged(StepKind.SOURCE, **source) == (
        Verdict.PASS,
        "the starting point: AP 0.8200 on 300 images",
    )
    assert _judged(StepKind.SOURCE, **source, value=None, accuracy_reason="no images")[0] is Verdict.UNKNOWN


def test_few_images_are_said_to_be_few_and_do_not_change_the_verdict() -> None:
    step = _step(StepKind.PRECISION, images=53, drop=0.4)
    assert judge(step, LIMITS)[0] is Verdict.PASS
    assert notes(step, LIMITS) == (), "it is said once, with the source"
    source = replace(step, kind=StepKind.SOURCE)
    assert notes(source, LIMITS) == (
        "on 53 images one image weighs about 1.9 points of AP: a drop of 0.5 points cannot be told from chance; "
        "the verdict follows the measured value",
    )
    assert notes(replace(source, images=2000), LIMITS) == ()


def test_agreement_is_named_as_such() -> None:
    assert (
        "points of agreement with the original"
        in _judged(StepKind.PRECISION, metric="agreement", drop=9.0)[1]
    )


def test_cleaning_is_kept_when_slower_because_later_steps_need_it_but_not_when_it_changes_numbers() -> None:
    slow = Speed(0.7, 0.65, 0.75)
    assert _judged(StepKind.CLEANING, drop=0.0, speed=slow)[0] is Verdict.PASS
    assert _judged(StepKind.STRUCTURAL, drop=0.0, speed=slow)[0] is Verdict.REJECTED
    broken = Parity(1.0, 0.9, 0.5, "logits")
    assert _judged(StepKind.CLEANING, drop=0.0, speed=slow, parity=broken)[0] is Verdict.FAIL


def test_a_structural_step_is_not_called_slow_while_other_processes_keep_the_cores_busy() -> None:
    slow = Speed(0.7, 0.65, 0.75, quiet=False)
    assert _judged(StepKind.STRUCTURAL, drop=0.0, speed=slow)[0] is Verdict.PASS
    assert _judged(StepKind.PRECISION, drop=0.0, speed=slow)[0] is Verdict.REJECTED


def test_too_few_rounds_decide_nothing() -> None:
    verdict, reason = _judged(StepKind.PRECISION, drop=0.0, speed=Speed(2.0, 0.0, float("inf")))
    assert (verdict, reason) == (
        Verdict.UNKNOWN,
        "speed was measured in too few rounds to tell it from chance",
    )


def test_a_drop_of_exactly_the_budget_is_inside_whatever_floats_make_of_it() -> None:
    drop = 100 * (0.9345 - 0.9295)
    assert drop > 0.5
    assert Limits(max_drop=0.5).allow(drop)
    assert not Limits(max_drop=0.5).allow(0.5001)


@pytest.mark.parametrize(
    ("value", "budget", "known"),
    [
        *((0.0, 0.5, False), (0.0001, 0.5, False), (0.005, 0.5, False), (0.006, 0.5, True)),
        *((0.0, 0.0, False), (0.0001, 0.0, True), (0.01, 100.0, False), (0.02, 100.0, True)),
    ],
)
def test_an_original_of_which_nothing_can_be_lost_is_no_starting_point(
    value: float, budget: float, known: bool
) -> None:
    step = _step(StepKind.SOURCE, value=value, drop=None, parity=None, speed=None)
    verdict, reason = judge(step, Limits(max_drop=budget))
    assert verdict is (Verdict.PASS if known else Verdict.UNKNOWN)
    if not known:
        said = f"AP {value:.4f} on 300 images: the original gets next to nothing right on them"
        assert reason.startswith(said) and f"budget of {budget:g} points" in reason
        assert "--spec" in reason


@pytest.mark.parametrize(
    ("value", "chance", "budget", "known"),
    [
        *(
            (0.1, 10.0, 0.5, False),
            (0.12, 10.0, 0.5, False),
            (0.121, 10.0, 0.5, True),
            (0.0, 10.0, 0.0, False),
        ),
        *((0.9, 90.0, 0.5, False), (0.93, 90.0, 0.5, True), (1.0, 100.0, 0.5, False)),
    ],
)
def test_a_classifier_at_chance_is_no_starting_point(
    value: float, chance: float, budget: float, known: bool
) -> None:
    step = _step(
        StepKind.SOURCE, metric="top1", value=value, chance=chance, drop=None, parity=None, speed=None
    )
    verdict, reason = judge(step, Limits(max_drop=budget))
    assert verdict is (Verdict.PASS if known else Verdict.UNKNOWN)
    if not known:
        guessed = f"always answering the most frequent class gets {chance / 100:.4f}"
        assert reason.startswith(f"top-1 {value:.4f} on 300 images: {guessed}")
        assert "likely the spec" in reason and "--spec" in reason and reason.endswith("see docs/spec.md")


def test_chance_is_asked_of_the_original_alone() -> None:
    step = _step(StepKind.PRECISION, metric="top1", value=0.1, chance=10.0)
    assert judge(step, LIMITS)[0] is Verdict.PASS
