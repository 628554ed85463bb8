from dataclasses import replace

from report.sample import CLEAN, FAIL, FUSE, INT8, SOURCE, UNKNOWN, sample_ledger
from vitesse.ledger import Accuracy, Ledger, Verdict
from vitesse.report.summary import Ending, conclude


def test_a_success_names_the_file_the_speed_the_cost_and_the_budget():
    conclusion = conclude(sample_ledger())
    assert conclusion.ending is Ending.FASTER
    assert conclusion.title == "1.62× as fast, still right"
    assert conclusion.sentence() == (
        "Deploy artifacts/int8-backbone-696e74382d62.onnx (step 6, int8-backbone). "
        "It runs 1.62× as fast as the original with default options "
        "(p50 11.69 ms instead of 18.93 ms, spread 1.59–1.65). "
        "Its AP is 0.8241 on 300 images, 0.18 points below the original (0.50 allowed). "
        "The latency budget of 16 ms is met (p50 11.69 ms)."
    )
    assert conclusion.cost_allowed is True
    assert conclusion.budget_met is True


def test_the_final_comparison_wins_over_the_row_s_own_gain():
    ledger = replace(sample_ledger(), final={"gain": 1.4, "gain_spread": [1.3, 1.5]})
    assert conclude(ledger).title == "1.40× as fast, still right"
    assert conclude(replace(ledger, final=None)).title == "1.62× as fast, still right"
    assert conclude(replace(ledger, final=None)).speed.before_ms == SOURCE.latency_ms.p50


def test_a_spread_across_one_is_no_gain():
    ledger = replace(sample_ledger(), final={"gain": 1.02, "gain_spread": [0.97, 1.06]})
    assert conclude(ledger).title == "No measurable change in speed"
    assert "cannot be told from that of the original" in conclude(ledger).speed_words


def test_keeping_the_original_says_that_no_step_was_faster():
    ledger = Ledger("m.onnx", "cpu", (SOURCE, INT8), chosen=0)
    conclusion = conclude(ledger)
    assert (conclusion.ending, conclusion.title) == (Ending.KEPT, "The original stays")
    assert "No step was faster inside the accuracy budget." in conclusion.sentence()
    assert "×" not in conclusion.sentence()
    assert conclusion.cost_words == "Its AP is 0.8259 on 300 images."


def test_steps_that_passed_and_were_not_faster_in_the_last_run_are_named_with_what_they_were_there():
    final = {"gain": 1.0, "gain_spread": [1.0, 1.0], "gains": {"fuse": 1.072, "clean": 0.7}}
    conclusion = conclude(Ledger("m.onnx", "cpu", (SOURCE, CLEAN, FUSE), chosen=0, final=final))
    assert conclusion.title == "The original stays"
    assert (
        "When those that passed met the original once more, none was faster beyond noise: fuse 1.07×, clean 0.70×."
    ) in conclusion.sentence()


def test_a_drop_of_zero_is_nothing_lost():
    conclusion = conclude(Ledger("m.onnx", "cpu", (SOURCE, CLEAN), chosen=1))
    assert conclusion.cost_words == "Its AP is 0.8259 on 300 images: nothing lost (0.50 points allowed)."


def test_a_chosen_row_that_did_not_pass_is_never_called_right():
    for row in (UNKNOWN, FAIL, INT8):
        conclusion = conclude(Ledger("m.onnx", "cpu", (SOURCE, row), chosen=1))
        assert conclusion.ending is Ending.UNVERIFIED
        assert "right" not in conclusion.title
        assert row.verdict.value in conclusion.sentence()


def test_an_original_that_was_not_verified_is_not_raced_against_itself():
    original = replace(SOURCE, verdict=Verdict.UNKNOWN, reason="nothing right")
    conclusion = conclude(Ledger("m.onnx", "cpu", (original,), chosen=0))
    assert conclusion.ending is Ending.UNVERIFIED
    assert conclusion.speed_words == "" and "as fast" not in conclusion.sentence()
    assert "nothing right" in conclusion.sentence()


def test_an_unmeasured_choice_gives_the_reasons():
    sentence = conclude(Ledger("m.onnx", "cpu", (SOURCE, UNKNOWN), chosen=1)).sentence()
    assert "Its speed was not measured: needs an NVIDIA GPU; none is visible here." in sentence
    assert "Its accuracy was not measured: needs an NVIDIA GPU; none is visible here." in sentence


def test_a_broken_run_names_the_stage_and_the_reason():
    conclusion = conclude(Ledger("m.onnx", "cpu", (SOURCE, FAIL)))
    assert conclusion.title == "Stopped: fp16 broke the model"
    assert "output 'logits' is NaN on 300 of 300 images." in conclusion.sentence()


def test_an_interrupted_run_says_how_to_go_on():
    conclusion = conclude(Ledger("m.onnx", "cpu", (SOURCE, CLEAN)))
    assert conclusion.ending is Ending.UNDECIDED
    assert "repeat the command" in conclusion.sentence()


def test_an_empty_ledger_is_an_interrupted_run():
    assert conclude(Ledger("m.onnx", "cpu")).ending is Ending.UNDECIDED


def test_a_drop_over_the_budget_is_said_and_not_allowed():
    conclusion = conclude(replace(sample_ledger(), max_drop=0.1))
    assert conclusion.cost_allowed is False
    assert "0.18 points below the original (more than the 0.10 allowed)" in conclusion.cost_words


def test_a_gain_in_accuracy_is_above_the_original():
    conclusion = conclude(Ledger("m.onnx", "cpu", (SOURCE, FUSE), chosen=1))
    assert "0.01 points above the original" in conclusion.cost_words


def test_agreement_is_named_as_such():
    rows = (SOURCE, replace(FUSE, accuracy=Accuracy("agreement", 0.991, 0.9, 53)))
    cost = conclude(Ledger("m.onnx", "cpu", rows, chosen=1)).cost_words
    assert cost.startswith("Its agreement with the original is 0.9910 on 53 images")


def test_a_missed_and_an_unknown_latency_budget_are_told_apart():
    tail = {"budget_ms": 16.0, "p50_ms": 11.69, "met": True, "reason": "p99 is 17.20 ms, above the budget"}
    assert conclude(replace(sample_ledger(), latency_budget=tail)).budget_words == (
        "The latency budget of 16 ms is met (p50 11.69 ms); p99 is 17.20 ms, above the budget."
    )
    missed = {"budget_ms": 8.0, "p50_ms": 11.69, "met": False}
    conclusion = conclude(replace(sample_ledger(), latency_budget=missed))
    assert conclusion.budget_words == "The latency budget of 8 ms is not met (p50 11.69 ms)."
    assert conclusion.budget_met is False
    unknown = {"budget_ms": 8.0, "p50_ms": None, "met": None, "reason": "the engine crashed"}
    conclusion = conclude(replace(sample_ledger(), latency_budget=unknown))
    assert (
        conclusion.budget_words
        == "Whether it meets the latency budget of 8 ms is unknown: the engine crashed."
    )
    assert conclusion.budget_met is None
    assert conclude(replace(sample_ledger(), latency_budget=None)).budget_words == ""
