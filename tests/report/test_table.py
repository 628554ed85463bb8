import io
from dataclasses import replace

import pytest
from rich.console import Console

from report.sample import FAIL, FUSE, SOURCE, sample_ledger
from vitesse.ledger import Ledger, Verdict
from vitesse.report.figures import row_texts
from vitesse.report.summary import VERDICT_STYLES, conclude
from vitesse.report.table import print_ledger


def _printed(ledger: Ledger, width: int, *, colour: bool = False) -> str:
    stream = io.StringIO()
    terminal = {"force_terminal": True, "color_system": "standard"} if colour else {}
    print_ledger(ledger, Console(file=stream, width=width, **terminal))
    return stream.getvalue()


def _line_of(printed: str, stage: str) -> str:
    return next(line for line in printed.splitlines() if stage in line and line[0].isdigit())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_every_step_has_one_line_of_figures_that_fits(width):
    printed = _printed(sample_ledger(), width)
    lines = printed.splitlines()
    assert max(map(len, lines)) <= width
    steps = [line for line in lines if line[:1].isdigit() and line[1:2] == " "]
    assert len(steps) == 9
    for line, row in zip(steps, sample_ledger().rows, strict=True):
        assert line.endswith(row.verdict.value)


def test_eighty_columns_show_size_accuracy_drop_latency_speed_memory_and_gain():
    printed = _printed(sample_ledger(), 80)
    heads = printed.splitlines()[0].split()
    assert heads == ["step", "MB", "AP", "drop", "p50", "ms", "img/s", "mem", "MB", "gain", "verdict"]
    assert _line_of(printed, "int8-backbone").split() == (
        ["6", "int8-backbone", "19.05", "0.8241", "0.18", "11.67", "101.3", "214.8", "1.62×", "PASS"]
    )


def test_a_wide_terminal_shows_the_spread_too():
    assert "1.58–1.66" in _printed(sample_ledger(), 120)


def test_reasons_changes_and_missing_figures_stand_below_each_step():
    printed = _printed(sample_ledger(), 200)
    for text in row_texts(sample_ledger()):
        assert text.reason in printed
        assert not text.changed or f"changed {text.changes()}" in printed
        for what, reason in text.missing:
            assert f"{what} not measured: {reason}" in printed
    assert "   chosen: 1.62× as fast, loses 0.18 of 0.50 points of AP" in printed


WRONG_SPEC = "AP 0.0015 on 20 images: the original gets next to nothing right on them; see docs/spec.md"
NOTHING_FOUND = "the original finds nothing on 9 images"


def _flat(printed: str) -> str:
    return " ".join(printed.split())


def test_why_the_original_is_no_starting_point_is_printed_once():
    row = replace(SOURCE, verdict=Verdict.UNKNOWN, reason=WRONG_SPEC)
    printed = _flat(_printed(Ledger("m.onnx", "cpu", (row,), chosen=0), 110))
    assert printed.count(WRONG_SPEC) == 1
    assert f"source was chosen with the verdict UNKNOWN: {WRONG_SPEC}." in printed
    assert printed.count("UNKNOWN") == 2


def test_why_a_run_stopped_is_printed_once():
    printed = _flat(_printed(Ledger("m.onnx", "cpu", (SOURCE, FAIL)), 110))
    assert printed.count(FAIL.reason) == 1
    assert f"Nothing was chosen. fp16 broke the model: {FAIL.reason}." in printed
    assert "changed 131 float16 initialisers" in printed


def test_an_accuracy_that_is_unknown_gives_its_reason_once():
    row = replace(
        SOURCE,
        verdict=Verdict.UNKNOWN,
        reason=f"accuracy is unknown: {NOTHING_FOUND}",
        accuracy=None,
        unmeasured={"accuracy": NOTHING_FOUND},
    )
    printed = _flat(_printed(Ledger("m.onnx", "cpu", (row,), chosen=0), 110))
    assert printed.count(NOTHING_FOUND) == 1
    assert printed.endswith("Its accuracy was not measured.")


def test_the_last_words_are_the_conclusion():
    printed = " ".join(_printed(sample_ledger(), 80).split())
    assert printed.endswith(" ".join(conclude(sample_ledger()).sentence().split()))


def test_verdicts_are_coloured_and_every_verdict_has_a_style():
    printed = _printed(sample_ledger(), 120, colour=True)
    assert "\x1b[32mPASS" in printed
    assert "\x1b[33mREJECTED" in printed
    assert "\x1b[1;31mFAIL" in printed
    assert set(VERDICT_STYLES) == set(Verdict)


def test_console_markup_in_the_ledger_is_printed_as_it_is():
    row = replace(FUSE, stage="[red]x[/]", reason="shape [1, 3] and [/bold]")
    printed = _printed(Ledger("m.onnx", "cpu", (SOURCE, row), chosen=0), 100)
    assert "[red]x[/]" in printed
    assert "shape [1, 3] and [/bold]" in printed


def test_a_long_stage_name_is_cut_with_an_ellipsis():
    printed = _printed(Ledger("m.onnx", "cpu", (SOURCE, replace(FUSE, stage="s" * 60)), chosen=0), 80)
    assert "sss…" in printed


def test_without_a_console_it_goes_to_standard_output(capsys):
    print_ledger(Ledger("m.onnx", "cpu"))
    assert "Unfinished: nothing was chosen yet" in capsys.readouterr().out
