import re
from dataclasses import replace

import pytest

from report.sample import FUSE, SOURCE, sample_extras, sample_ledger
from vitesse.ledger import Ledger
from vitesse.report.extras import ReportExtras
from vitesse.report.figures import columns, row_texts
from vitesse.report.markdown import render_markdown


def _table(text: str, heading: str) -> list[list[str]]:
    block = text.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]


def test_the_ledger_table_holds_every_row_with_the_figures_of_the_ledger():
    ledger = sample_ledger()
    rows = _table(render_markdown(ledger, sample_extras()), "Ledger")[2:]
    assert len(rows) == len(ledger.rows)
    for cells, text in zip(rows, row_texts(ledger), strict=True):
        assert cells[2:-1] == [text.cells[column.key].text for column in columns(ledger)]
        assert cells[-1] == text.verdict.value
    assert rows[5][1] == "**int8-backbone** (chosen)"


def test_reasons_changes_and_what_was_not_measured_are_told():
    text = render_markdown(sample_ledger(), sample_extras())
    assert "7. **build:openvino**, REJECTED: 13 % slower than int8-backbone on ONNX Runtime" in text
    assert "   - looked for, not found: tanh Gelu" in text
    assert "   - parity not measured: NaN has no distance" in text
    assert "- energy: this machine has no power counter" in text


def test_the_title_the_command_and_the_environment_are_there():
    text = render_markdown(sample_ledger(), sample_extras())
    assert text.startswith("# 1.62× as fast, still right\n")
    assert f"```sh\n{sample_ledger().command}\n```" in text
    assert "- packages: vitesse 0.1.0, onnx 1.23.2, onnxruntime 1.31.1, openvino 2026.4.1" in text


def test_markup_in_the_ledger_is_shown_and_not_obeyed():
    row = replace(FUSE, stage="a|b", reason="<img src=x> **bold** [link](http://x) `code`\n# heading")
    text = render_markdown(
        Ledger("<script>alert(1)</script>", "cpu", (SOURCE, row), chosen=1, command="echo ```"),
        ReportExtras(),
    )
    assert "<script" not in text
    assert "&lt;img src=x&gt; \\*\\*bold\\*\\* \\[link\\](http://x) \\`code\\` \\# heading" in text
    assert "\n# heading" not in text
    assert "````sh\necho ```\n````" in text
    rows = text.split("## Ledger\n\n")[1].split("\n\n")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {14}


def test_underscores_inside_names_stay_readable():
    assert "detr_fashion.onnx" in render_markdown(sample_ledger(), ReportExtras())
    assert r"\_\_init\_\_" in render_markdown(replace(sample_ledger(), target="__init__"), ReportExtras())


@pytest.mark.parametrize("rows", [(), (SOURCE,)])
def test_an_unfinished_run_has_a_report_too(rows):
    text = render_markdown(Ledger("m.onnx", "cpu", rows), ReportExtras())
    assert "Unfinished" in text
    assert "## Start-up" not in text


def test_time_by_part_stands_before_time_by_operator():
    text = render_markdown(sample_ledger(), sample_extras())
    assert _table(text, "Where the time goes")[0] == ["step or part", "original, ms", "chosen, ms"]
    assert text.index("| decoder | 7.55 | 5.23 |") < text.index("| MatMul | 8.62 | 4.41 |")
    assert "| image to result | 24.00 | 14.92 |" in text
