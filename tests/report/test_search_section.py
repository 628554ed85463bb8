"""What a search tried, in the report."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from report.sample import sample_extras, sample_ledger
from vitesse.errors import RunFolderError
from vitesse.precision.search.found import Found, Score, Sensitivity, Speed, Trial
from vitesse.report.html import write_report
from vitesse.report.search_section import search_plot, search_points, search_text

WHOLE = frozenset({"backbone.layer1", "decoder.0", "decoder.1"})
PART = frozenset({"backbone.layer1", "decoder.0"})
ALONE = frozenset({"decoder.0"})

FOUND = Found(
    runtime="onnxruntime",
    chosen=PART,
    reason="2 of 3 blocks lowered: AP −0.31, 1.60× as fast as FP32",
    variant="uint8, mse",
    trials=(
        Trial(
            WHOLE,
            Score(12.4, 0.2, 96),
            Speed(2.0, 1.9, 2.1, 10.0, 20.0),
            10.0,
            1.0,
            "uint8, mse",
            "rejected: AP −12.4",
        ),
        Trial(ALONE, Score(0.02, 0.01, 32), None, 18.0, 0.4, "uint8, mse", "alone: AP −0.02"),
        Trial(
            PART,
            Score(0.31, 0.04, 96),
            Speed(1.6, 1.5, 1.7, 12.6, 20.2),
            12.0,
            1.0,
            "uint8, mse",
            "chosen: AP −0.31, 1.60× (1.50 to 1.70)",
        ),
        Trial(ALONE, Score(-0.02, 0.01, 96), None, 18.0, 0.4, "uint8, mse", "inside the budget: AP +0.02"),
    ),
    sensitivities=(
        Sensitivity("backbone.layer1", Score(0.2, 0.03, 32), 0.75, 6.0, True, "lowered"),
        Sensitivity("decoder.0", Score(0.02, 0.01, 32), 0.125, 2.0, True, "lowered"),
        Sensitivity("decoder.1", None, None, -0.4, False, "back in FP32: not faster lowered"),
    ),
    max_drop=0.5,
    allowed=0.4,
    metric="coco_ap",
    original=0.85,
    images=96,
    baseline_ms=20.0,
    estimate_s=150.0,
    seconds=70.0,
    notes=(
        "everything lowered, by number: uint8 2.00× (1.90 to 2.10), int8 1.20× (1.10 to 1.30); uint8 goes on",
    ),
)


def test_latency_is_the_originals_over_the_gain_and_accuracy_is_the_originals_less_the_drop() -> None:
    found = {(one.name, one.kind): (one.latency_ms, round(one.accuracy, 6)) for one in search_points(FOUND)}
    assert found == {
        ("FP32", "source"): (20.0, 0.85),
        ("everything lowered", "rejected"): (10.0, 0.726),
        ("2 of 3 blocks", "chosen"): (12.5, 0.8469),
        ("1 of 3 blocks, latency estimated", "estimated"): (18.0, 0.8502),
    }, "the trial on 32 images is not comparable and has no point"


def test_the_curve_has_a_budget_line_and_labels_only_what_was_raced() -> None:
    drawing = ET.fromstring(search_plot(FOUND, width=1040, height=440))
    texts = [str(one.text) for one in drawing.iter("text")]
    assert {"FP32", "2 of 3 blocks", "everything lowered (AP on 96 search images 0.7260)"} <= set(texts)
    assert "largest drop allowed, 0.5 points" in texts
    assert not any("estimated" in text for text in texts)
    titles = [str(one.text) for one in drawing.iter("title")]
    assert any(title.startswith("1 of 3 blocks, latency estimated: 18.00 ms") for title in titles)
    assert all(one.text for one in drawing.iter("text")), "a point without a label left an empty text behind"


def test_blocks_are_told_with_what_they_cost_and_save_and_what_became_of_them() -> None:
    rows = search_text(FOUND).blocks
    assert rows[0].cells == ("0.20", "3.00", "75.0", "6.00")
    assert rows[2].cells == ("–", "–", "–", "−0.40")
    assert [row.lowered for row in rows] == [True, True, False]
    assert rows[2].fate == "back in FP32: not faster lowered"


def test_the_search_says_how_it_ended_how_long_it_took_and_which_images_judged_it() -> None:
    first, second = search_text(FOUND).sentences
    assert first == "2 of 3 blocks lowered: AP −0.31, 1.60× as fast as FP32. Quantised by uint8, mse."
    assert second.startswith(
        "4 trials in 70 seconds (estimated: about 2 minutes), judged on 96 calibration images"
    )
    assert "a set may lose 0.4 of the 0.5 points" in second


def test_a_search_without_a_result_says_why_and_has_no_curve_without_a_race() -> None:
    nothing = replace(
        FOUND, chosen=frozenset(), reason="rejected: slower than FP32: 0.90× (0.88 to 0.92)", baseline_ms=None
    )
    text = search_text(nothing)
    assert text.sentences[0].startswith("Nothing is lowered: rejected: slower than FP32: 0.90×")
    assert text.unplotted and not search_plot(nothing, width=360, height=400)


def test_html_and_markdown_hold_the_same_section_for_every_runtime(tmp_path: Path) -> None:
    FOUND.save(tmp_path)
    replace(FOUND, runtime="openvino", chosen=frozenset()).save(tmp_path)
    page = write_report(tmp_path, sample_ledger(), sample_extras()).read_text()
    markdown = (tmp_path / "report.md").read_text()
    for text in (page, markdown):
        assert "Lowered block by block on onnxruntime" in text
        assert "Lowered block by block on openvino" in text
        assert "back in FP32: not faster lowered" in text
        assert "int8 1.20× (1.10 to 1.30); uint8 goes on" in text
    assert "| backbone.layer1 | 0.20 | 3.00 | 75.0 | 6.00 | lowered |" in markdown
    assert page.count('<svg class="plot"') == 2 + 4, "the run's plot and one of each search, wide and narrow"


def test_names_from_the_model_are_escaped(tmp_path: Path) -> None:
    nasty = replace(FOUND.sensitivities[0], block="<script>|x")
    replace(FOUND, sensitivities=(nasty,)).save(tmp_path)
    page = write_report(tmp_path, sample_ledger(), sample_extras()).read_text()
    assert "&lt;script&gt;|x" in page and "<script>|x" not in page
    assert "&lt;script&gt;\\|x" in (tmp_path / "report.md").read_text()


def test_a_run_without_a_search_has_no_such_section(tmp_path: Path) -> None:
    assert (
        "Lowered block by block" not in write_report(tmp_path, sample_ledger(), sample_extras()).read_text()
    )


def test_a_damaged_search_is_named(tmp_path: Path) -> None:
    FOUND.save(tmp_path).write_text("{")
    with pytest.raises(RunFolderError, match=r"search-onnxruntime\.json"):
        write_report(tmp_path, sample_ledger(), sample_extras())
