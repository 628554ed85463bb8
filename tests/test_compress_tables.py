"""The tables of benchmarks/compress.py, from results written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmark_scripts import benchmark

ROOT = Path(__file__).resolve().parents[1]
WHERE = {"cpu": {"model": "a processor"}, "gpus": [], "date": "2026-01-02T03:04:05+00:00"}


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return benchmark("compress_tables")


def training(name: str, last: float, **changes: Any) -> dict[str, Any]:
    """Original of 80 points and 100 M operations; half of it is left, and ends with `last` points."""
    whole = {"metric": "coco_ap", "flops": 100_000_000, "parameters": 2_000_000}
    half = {**whole, "flops": 50_000_000, "parameters": 1_500_000}
    rows = [
        {"name": "original", "score": 80.0, **whole},
        {"name": "cut", "score": 12.5, **half},
        {"name": name, "score": last, "steps": 700, "seconds": 60.4, "stopped": "", "curve": [], **half},
    ]
    return {"command": "the command", "environment": WHERE, "together": "", "rows": rows, **changes}


def race(kind: str = "vit", foreign_cores: float | None = 0.25) -> dict[str, Any]:
    rows = [
        {"name": "original", "p50_ms": 4.0, "gain": 1.0, "interval": [1.0, 1.0], "score": 80.0},
        {"name": "pruned < 1", "p50_ms": 2.0, "gain": 2.0, "interval": [1.9, 2.1], "score": 79.5},
    ]
    return {
        "command": "the race", "environment": WHERE, "runtime": "onnxruntime", "threads": 2,
        "kind": kind, "rows": rows, "samples": {"foreign_cores": foreign_cores},
    }  # fmt: skip


def keep(folder: Path, **results: dict[str, Any]) -> Path:
    for name, found in results.items():
        (folder / f"compress_{name}.json").write_text(json.dumps(found))
    return folder


def test_what_was_not_run_is_said_in_every_table(table: ModuleType, tmp_path: Path) -> None:
    made = table.tables(tmp_path)
    assert set(made) == {"vit", "detr", "students", "latency_cpu", "latency_cuda"}
    assert all(one.startswith("not run") for one in made.values())
    assert "not run" in table.picture([])


def test_the_loss_and_the_share_are_against_the_original(table: ModuleType, tmp_path: Path) -> None:
    made = table.tables(keep(tmp_path, detr=training("pruned, distilled", 79.25)))
    assert "| original | 80.00 |  | 100 M, 100% | 2.00 M | | |" in made["detr"]
    assert "| pruned, distilled | 79.25 | -0.75 | 50 M, 50% | 1.50 M | 700 | 60 s |" in made["detr"]
    assert "`the command` on a processor; 2026-01-02." in made["detr"]
    assert made["vit"] == "not run"


def test_a_training_that_stopped_early_says_so(table: ModuleType, tmp_path: Path) -> None:
    found = training("pruned, distilled", 40.0)
    found["rows"][2]["stopped"] = "the loss is nan"
    assert "(stopped: the loss is nan)" in table.tables(keep(tmp_path, vit=found))["vit"]


def test_a_training_that_made_the_network_worse_says_whose_score_is_shown(
    table: ModuleType, tmp_path: Path
) -> None:
    found = training("trained on labels alone", 80.0)
    found["rows"][2]["curve"] = [[0, 1.0, 80.0], [700, 60.4, 78.123]]
    said = "(its end scored 78.12; the weights it began with stay)"
    assert said in table.tables(keep(tmp_path, detr=found))["detr"]
    found["rows"][2]["curve"][1][2] = 80.0
    assert said[1:4] not in table.tables(keep(tmp_path, detr=found))["detr"]


def test_three_students_stand_in_one_table_only_when_both_were_trained(
    table: ModuleType, tmp_path: Path
) -> None:
    keep(tmp_path, student=training("distilled", 79.0))
    assert table.tables(tmp_path)["students"] == "not run: student_labels"
    keep(tmp_path, student_labels=training("labels alone", 77.0))
    lines = table.tables(tmp_path)["students"].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [
        "original", "cut", "labels alone", "distilled",
    ]  # fmt: skip
    assert "| labels alone | 77.00 | -3.00 |" in lines[4]


def test_the_race_gives_gain_accuracy_and_how_busy_it_was(table: ModuleType, tmp_path: Path) -> None:
    keep(tmp_path, latency_cpu_detr=race("detr", None))
    (alone,) = table.races(tmp_path, "cpu")
    assert table.tables(tmp_path)["latency_cpu"] == table.latency_table(alone)
    made = table.tables(keep(tmp_path, latency_cpu_vit=race()))["latency_cpu"]
    vit, detr = made.split("on a processor")[:2]
    assert "| vit_fashion, pruned < 1 | 2.000 | 2.00 [1.90, 2.10] | 79.50 | -0.50 |" in vit
    assert "| detr_fashion, pruned < 1 | 2.000 | 2.00 [1.90, 2.10] | 79.50 | -0.50 |" in detr
    assert "2 threads" in made
    assert "other processes took 0.25 cores" in detr, "conditions follow their table"
    assert "others' load is not known" in made


def test_races_of_one_model_share_a_panel_and_its_original(table: ModuleType, tmp_path: Path) -> None:
    student = race("detr")
    student["rows"][0]["p50_ms"], student["rows"][1]["gain"] = 8.0, 4.0
    keep(tmp_path, latency_cpu_detr=race("detr"), latency_cpu_student={**student, "note": "measured later"})
    both = table.races(tmp_path, "cpu")
    root = ElementTree.fromstring(table.picture(both))
    whole, half, quarter = (float(one.attrib["cx"]) for one in root.iter() if one.tag.endswith("circle"))
    assert quarter - table.MARGIN == pytest.approx((half - table.MARGIN) / 2, abs=0.1)
    assert half - table.MARGIN == pytest.approx((whole - table.MARGIN) / 2, abs=0.1)
    assert table.latency_table(both[1]).endswith("2026-01-02; measured later.")


def test_the_picture_has_a_dot_for_every_network_inside_its_panel(table: ModuleType) -> None:
    root = ElementTree.fromstring(table.picture([race(), race("detr")]))
    dots = [
        (float(one.attrib["cx"]), float(one.attrib["cy"]))
        for one in root.iter()
        if one.tag.endswith("circle")
    ]
    assert len(dots) == 4
    (slow, best), (fast, worse), (other, _), _ = dots
    assert fast < slow < table.WIDE < other < 2 * table.WIDE
    assert 0 < best < worse < table.HIGH


def test_the_page_is_the_one_made_from_the_committed_results(table: ModuleType) -> None:
    results = ROOT / "benchmarks" / "results"
    page = (ROOT / "docs" / "compress.md").read_text()
    assert table.page_with_tables(page, results) == page
    picture = (ROOT / "docs" / "images" / "compress_curve.svg").read_text()
    assert picture == table.picture(table.races(results, "cpu"))


def test_a_page_without_a_place_for_a_table_is_refused(table: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the page has no <!-- vit:begin -->"):
        table.page_with_tables("nothing", tmp_path)
