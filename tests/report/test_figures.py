from dataclasses import replace

import pytest

from report.sample import FAIL, FUSE, SOURCE, UNKNOWN, sample_ledger
from vitesse.ledger import Accuracy, Ledger, Row, Verdict
from vitesse.report.figures import DASH, NO_REASON, columns, decimal, metric_name, row_texts, signed, times


def test_every_row_becomes_text_in_order_and_one_is_chosen():
    texts = row_texts(sample_ledger())
    assert [text.number for text in texts] == list(range(1, 10))
    assert [text.stage for text in texts] == [row.stage for row in sample_ledger().rows]
    assert [text.stage for text in texts if text.chosen] == ["int8-backbone"]


def test_figures_of_a_full_row_carry_the_ledger_s_values():
    cells = row_texts(sample_ledger())[5].cells
    texts = {key: cell.text for key, cell in cells.items()}
    assert texts == {
        "size": "19.05",
        "accuracy": "0.8241",
        "drop": "0.18",
        "p50": "11.67",
        "p90": "12.37",
        "p99": "15.29",
        "speed": "101.3",
        "memory": "214.8",
        "gain": "1.62×",
        "spread": "1.58–1.66",
    }
    assert not any(cell.reason for cell in cells.values())


def test_every_column_has_a_cell_in_every_row():
    ledger = sample_ledger()
    for text in row_texts(ledger):
        assert {column.key for column in columns(ledger)} == set(text.cells)


def test_a_null_field_is_a_dash_with_the_ledger_s_reason():
    text = row_texts(Ledger("m.onnx", "cpu", (SOURCE, UNKNOWN)))[1]
    assert text.cells["p50"].text == DASH
    assert text.cells["p50"].reason == "needs an NVIDIA GPU; none is visible here"
    what = "accuracy, parity, latency, throughput, memory, gain, size"
    assert text.missing == ((what, "needs an NVIDIA GPU; none is visible here"),)


def test_a_null_field_without_a_reason_says_that_none_was_recorded():
    text = row_texts(Ledger("m.onnx", "cpu", (SOURCE, Row("fuse", Verdict.UNKNOWN, "?"))))[1]
    assert text.cells["gain"].reason == NO_REASON
    assert {reason for _, reason in text.missing} == {NO_REASON}


def test_missing_figures_are_grouped_by_their_reason():
    missing = row_texts(Ledger("m.onnx", "cpu", (SOURCE, FAIL)))[1].missing
    assert missing == (
        ("parity", "NaN has no distance"),
        ("latency, throughput, memory, gain", "not measured on a model that is wrong"),
    )


def test_a_reason_for_a_field_outside_the_columns_is_kept():
    row = replace(FUSE, cold_start_ms=None, unmeasured={"cold_start_ms": "the process was killed"})
    assert row_texts(Ledger("m.onnx", "cpu", (row,)))[0].missing == (
        ("cold start ms", "the process was killed"),
    )


def test_the_source_has_no_drop_by_definition_but_another_row_without_drop_was_not_measured():
    row = replace(FUSE, accuracy=Accuracy("coco_ap", 0.8, None, 300), unmeasured={"drop": "no baseline"})
    first, second = row_texts(Ledger("m.onnx", "cpu", (SOURCE, row)))
    assert first.cells["drop"].text == "0.00"
    assert second.cells["drop"].text == DASH
    assert second.cells["drop"].reason == "no baseline"


def test_changes_are_sorted_by_count_and_zero_counts_are_named_apart():
    text = row_texts(sample_ledger())[2]
    assert text.changes() == "18 LayerNormalization, 9 Attention, 6 Gelu, 4 BatchNorm into Conv"
    assert text.unchanged == ("tanh Gelu",)


@pytest.mark.parametrize(
    ("metric", "name"), [("coco_ap", "AP"), ("top1", "top-1"), ("agreement", "agreement"), ("miou", "miou")]
)
def test_the_accuracy_column_is_named_after_the_metric(metric, name):
    ledger = Ledger("m.onnx", "cpu", (UNKNOWN, replace(SOURCE, accuracy=Accuracy(metric, 0.9, None, 10))))
    assert metric_name(ledger) == name
    assert columns(ledger)[1].heading == name


def test_without_any_accuracy_the_column_is_called_accuracy():
    assert metric_name(Ledger("m.onnx", "cpu", (UNKNOWN,))) == "accuracy"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0421, "0.042"),
        (9.866, "9.87"),
        (99.0, "99.00"),
        (987.04, "987.0"),
        (12345.6, "12,346"),
        (0.0, "0.000"),
    ],
)
def test_figures_have_the_digits_that_matter(value, text):
    assert decimal(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.184, "0.18"), (-0.05, "−0.05"), (-0.001, "0.00"), (0.0, "0.00"), (82.59, "82.59")]
)
def test_points_never_show_a_negative_zero(value, text):
    assert signed(value) == text


def test_ratios_have_two_digits():
    assert times(1.6249) == "1.62×"
