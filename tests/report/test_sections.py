from dataclasses import replace

from report.sample import FUSE, SOURCE, UNKNOWN, sample_extras, sample_ledger
from vitesse.ledger import Accuracy, Ledger
from vitesse.report import sections
from vitesse.report.extras import OperatorBar, ReportExtras
from vitesse.report.sections import Fact, Pair
from vitesse.report.summary import conclude


def _facts(ledger: Ledger) -> tuple[Fact, ...]:
    return sections.facts(ledger, conclude(ledger))


def test_the_headline_holds_latency_accuracy_and_the_file():
    latency, accuracy, file = _facts(sample_ledger())
    assert latency == Fact("p50 latency", "18.93 → 11.69 ms", "within the budget of 16 ms", True)
    assert accuracy == Fact("AP", "0.8259 → 0.8241", "0.18 points lost, 0.50 allowed; 300 images", True)
    assert file.value == "artifacts/int8-backbone-696e74382d62.onnx"
    assert file.below == "19.05 MB, onnxruntime, sha256 696e74382d62…"


def test_a_missed_budget_and_one_that_could_not_be_told_are_apart():
    ledger = sample_ledger()
    missed = _facts(replace(ledger, latency_budget={"budget_ms": 8.0, "p50_ms": 11.7, "met": False}))[0]
    assert (missed.below, missed.allowed) == ("over the budget of 8 ms", False)
    unknown = _facts(replace(ledger, latency_budget={"budget_ms": 8.0, "met": None, "reason": "?"}))[0]
    assert (unknown.below, unknown.allowed) == ("budget of 8 ms: could not be told", None)
    assert _facts(replace(ledger, latency_budget=None))[0].below == "at batch 1"


def test_the_original_alone_is_not_compared_with_itself():
    latency, accuracy, _ = _facts(Ledger("m.onnx", "cpu", (SOURCE, FUSE), chosen=0))
    assert latency.value == "18.91 ms"
    assert accuracy == Fact("AP", "0.8259", "300 images")


def test_headline_figures_that_are_missing_give_their_reason():
    reason = "needs an NVIDIA GPU; none is visible here"
    facts = _facts(Ledger("m.onnx", "cpu", (SOURCE, UNKNOWN), chosen=1))
    assert [(fact.value, fact.below) for fact in facts] == [
        ("not measured", reason),
        ("not measured", reason),
        ("none", reason),
    ]


def test_a_drop_without_baseline_is_not_called_zero():
    row = replace(FUSE, accuracy=Accuracy("coco_ap", 0.8, None, 300), unmeasured={"drop": "no baseline"})
    ledger = Ledger("m.onnx", "cpu", (SOURCE, row), chosen=1)
    assert _facts(ledger)[1].below == "drop not measured: no baseline"
    assert conclude(ledger).cost_allowed is None


def test_nothing_chosen_has_no_headline_figures():
    assert _facts(Ledger("m.onnx", "cpu", (SOURCE,))) == ()


def test_start_up_compares_the_original_with_the_chosen_and_says_what_is_missing():
    pairs = sections.start_up(Ledger("m.onnx", "cpu", (SOURCE, UNKNOWN), chosen=1))
    assert pairs[0] == Pair("load time", "214.0 ms", "not measured: no reason was recorded")
    assert pairs[2] == Pair(
        "peak memory", "312.4 MB", "not measured: needs an NVIDIA GPU; none is visible here"
    )
    assert [pair.label for pair in pairs] == ["load time", "cold start", "peak memory", "file size"]


def test_small_operators_are_joined_and_nothing_is_lost():
    operators = sample_extras().operators
    bars = sections.operator_bars(operators)
    assert len(bars) == sections.MOST_OPERATORS + 1
    assert abs(sum(bar.before_ms for bar in bars) - sections.operator_total(operators).before_ms) < 1e-9
    assert abs(sum(bar.after_ms for bar in bars) - sections.operator_total(operators).after_ms) < 1e-9


def test_one_operator_more_than_fits_is_not_joined_with_itself():
    operators = tuple(OperatorBar(f"Op{index}", 1.0, 1.0) for index in range(sections.MOST_OPERATORS + 1))
    assert sections.operator_bars(operators) == operators


def test_everything_not_measured_is_listed_with_its_step():
    found = sections.not_measured(sample_ledger(), sample_extras())
    assert ("fp16: parity", "NaN has no distance") in found
    assert found[-1] == ("energy", "this machine has no power counter")


def test_the_method_counts_images_and_samples_of_this_run_only_where_known():
    text = sections.method(sample_ledger(), sample_extras())
    assert "(412 samples or more per step)" in text
    assert "measured on 300 images" in text
    assert "412 samples in 40 rounds." in text
    empty = sections.method(Ledger("m.onnx", "cpu"), ReportExtras())
    assert "samples" not in empty
    assert "  " not in empty


def test_the_environment_becomes_readable_lines():
    lines = dict(
        sections.environment_lines(
            {
                "cpu": {"model": "Xeon", "flags": ["avx2", "vnni"], "usable_cores": 2, "virtual": True},
                "container": None,
                "packages": {"numpy": "2.4", "onnx": "1.23"},
                "variables": {},
            }
        )
    )
    assert lines == {
        "cpu: model": "Xeon",
        "cpu: flags": "avx2, vnni",
        "cpu: usable cores": "2",
        "cpu: virtual": "yes",
        "container": "unknown",
        "packages": "numpy 2.4, onnx 1.23",
        "variables": "none",
    }


def test_the_model_s_name_is_its_file_name_on_any_system():
    assert sections.model_name(Ledger("C:\\models\\vit.onnx", "cpu")) == "vit.onnx"
    assert sections.model_name(Ledger("vit.onnx", "cpu")) == "vit.onnx"
