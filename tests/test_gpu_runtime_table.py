"""docs/gpu.md holds what gpu_runtime.py measured; what is missing, refused or throttled is called so."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmark_scripts import FOLDER, benchmark
from gpu_records import line_of, record

PAGE = FOLDER.parent / "docs" / "gpu.md"
RACE = FOLDER / "results" / "gpu_runtime_race.json"
MARKERS = ("race", "target", "lost", "parity", "streams", "tune", "soak", "not-run")


@pytest.fixture(scope="module")
def page_script() -> ModuleType:
    return benchmark("gpu_runtime_table")


@pytest.fixture
def results(page_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results."""
    monkeypatch.setattr(page_script, "RESULTS", tmp_path)
    return tmp_path


# --- the page and its sources


def test_the_page_is_made_from_the_committed_results(page_script: ModuleType) -> None:
    page = PAGE.read_text()
    assert page_script.page_with_tables(page) == page


@pytest.mark.parametrize("name", MARKERS)
def test_a_changed_figure_and_a_page_without_markers_are_found(page_script: ModuleType, name: str) -> None:
    page = PAGE.read_text()
    changed = page.replace(f"<!-- {name}:begin -->\n", f"<!-- {name}:begin -->\n4.09× ")
    assert changed != page
    assert page_script.page_with_tables(changed) == page
    with pytest.raises(SystemExit, match=f"{name}:begin"):
        page_script.page_with_tables(page.replace(f"<!-- {name}:end -->", ""))


def test_another_result_makes_another_page(page_script: ModuleType, results: Path) -> None:
    found = json.loads(RACE.read_text())
    found["found"]["vit_b16"]["batches"]["1"]["fp16"]["candidates"]["ours"]["p50_ms"] += 0.01
    (results / RACE.name).write_text(json.dumps(found))
    page = PAGE.read_text()
    assert page_script.page_with_tables(page) != page


def test_every_link_of_the_page_leads_somewhere() -> None:
    for text, anchor in re.findall(r"\]\(([\w.]+)(?:#([\w-]+))?\)", PAGE.read_text()):
        target = PAGE.parent / text
        assert target.is_file(), text
        heads = [
            re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-")
            for head in re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        ]
        assert not anchor or anchor in heads, (text, anchor)


# --- what was not measured


@pytest.mark.parametrize("what", ["race", "streams", "tune", "soak"])
def test_without_a_file_the_page_says_not_run(page_script: ModuleType, results: Path, what: str) -> None:
    page = page_script.page_with_tables(PAGE.read_text())
    said = re.search(rf"<!-- {what}:begin -->\n(.*?)\n<!--", page, re.DOTALL)
    assert said is not None
    assert said[1] == f"Not run: `python benchmarks/gpu_runtime.py {what} … --out {what}.json`."


def test_what_was_not_measured_leaves_the_list_when_its_file_is_there(
    page_script: ModuleType, results: Path
) -> None:
    assert (
        "Several streams with CUDA graphs, `tune` over several streams, the soak"
        in page_script.missing_line()
    )
    (results / "gpu_runtime_streams.json").write_text("{}")
    assert "**`tune` over several streams, the soak of 100,000 runs on a GPU**" in page_script.missing_line()
    for what in ("tune", "soak"):
        (results / f"gpu_runtime_{what}.json").write_text("{}")
    assert page_script.missing_line() == ""


# --- streams, tune, soak


def point(batch: int, streams: int, verdict: str = "clean", **changes: Any) -> dict[str, Any]:
    figures = {"throughput_per_s": 1234.5, "p50_ms": 1.5, "p99_ms": 2.25, "memory_mb": 999.6, "refusal": ""}
    return {"batch": batch, "streams": streams, "verdict": verdict, **figures, **changes}


def test_streams_stand_with_and_without_graphs_side_by_side(page_script: ModuleType) -> None:
    found = record(
        {
            "vit_b16": {
                "fp16": [point(1, 1), point(1, 2, memory_mb=None), point(8, 1, "throttled")],
                "fp16+graph": [point(1, 1, p50_ms=0.85), point(1, 2, "refused", refusal="error 901")],
            }
        }
    )
    table = page_script.streams_table(found)
    vit = ("ViT-B/16, 224×224", "FP16")
    plain = ["1234", "1.50", "2.25", "1000"]
    assert line_of(table, *vit, "1", "1") == [*plain, "1234", "0.85", "2.25", "1000"]
    assert line_of(table, *vit, "1", "2") == [*plain[:3], "–", *["refused 1"] * 4]
    assert line_of(table, *vit, "8", "1") == ["throttled"] * 4 + ["not run"] * 4
    assert line_of(table, "DETR-R50, 800×1333", "FP16", "–", "–") == ["not run"] * 8
    assert "Refused 1: error 901" in table.splitlines()


def tuned(**changes: Any) -> dict[str, Any]:
    return {
        "latency_bound_ms": 5.0,
        "latency": point(4, 2),
        "throughput": point(32, 2),
        "gap": 0.012,
        "latency_gap": 0.081,
        "memory": {"fixed_mb": 900.4, "per_stream_mb": 300.2, "per_item_mb": 12.34, "error": 0.02},
        "points": [point(1, 1), point(2, 1, "throttled"), point(64, 4, "refused", refusal="memory")],
        "skipped": [{"batch": 64, "streams": 4, "why": "memory"}],
        **changes,
    }


def test_settings_stand_beside_their_distance_from_the_best_of_the_grid(page_script: ModuleType) -> None:
    table = page_script.tune_table(record({"vit_b16": tuned()}))
    vit, figures = "ViT-B/16, 224×224", ["1234", "1.50", "2.25", "1000"]
    assert line_of(table, vit, "latency, p99 within 5 ms") == ["4 × 2", *figures, "8.1 %: missed"]
    assert line_of(table, vit, "throughput") == ["32 × 2", *figures, "1.2 %: met"]
    assert line_of(table, "DETR-R50, 800×1333") == ["not run"] * 7
    told = (
        f"{vit}: 3 points, 1 refused, 1 throttled, 1 skipped; memory = 900 MB + streams × (300 MB + batch × "
    )
    assert told + "12.3 MB), off by at most 2 %." in table.splitlines()


def test_a_setting_that_was_not_found_or_not_clean_is_marked(page_script: ModuleType) -> None:
    found = tuned(latency=None, throughput=point(8, 1, "throttled"), gap=None, latency_gap=None, memory=None)
    table = page_script.tune_table(record({"vit_b16": found}))
    vit = "ViT-B/16, 224×224"
    assert line_of(table, vit, "latency, p99 within 5 ms") == ["none"] * 5 + ["not run"]
    assert line_of(table, vit, "throughput") == ["8 × 1", *["throttled"] * 4, "not run"]
    assert f"{vit}: 3 points, 1 refused, 1 throttled, 1 skipped." in table.splitlines()


def test_a_soak_shows_memory_from_where_every_shape_has_come(page_script: ModuleType) -> None:
    found = {
        "runs": 1000,
        "seconds": 61.2,
        "shapes": 144,
        "streams": 1,
        "graphs": 16,
        "without_graph": "",
        "wrong": 3,
        "curve": [
            [0, 500.0, 900.0],
            [100, 700.0, 950.0],
            [200, 800.0, 990.0],
            [500, 860.4, 980.0],
            [999, 810.0, 995.0],
        ],
    }
    table = page_script.soak_table(record({"detr": found}))
    assert line_of(table, "detr", "first run") == ["1", "500", "900"]
    assert line_of(table, "detr", "every shape has come") == ["201", "800", "990"]
    assert line_of(table, "detr", "halfway") == ["501", "860", "980"]
    assert line_of(table, "detr", "last run") == ["1000", "810", "995"]
    assert line_of(table, "detr", "the most after that") == ["–", "860", "995"]
    assert "1000 runs over 144 shapes on 1 streams in 61 s, 16 CUDA graphs; answers that differ" in table
    assert "of their shape: 3." in table


def test_a_model_whose_soak_was_cut_off_is_said_to_be_missing(page_script: ModuleType) -> None:
    cut = record({}) | {"command": "python this soak vit.onnx detr.onnx"}
    assert "vit: not run to its end." in page_script.soak_table(cut)


def test_a_soak_that_ended_before_every_shape_had_come_shows_its_first_run_only(
    page_script: ModuleType,
) -> None:
    found = {
        "runs": 2,
        "seconds": 1.0,
        "shapes": 144,
        "streams": 4,
        "graphs": 2,
        "without_graph": "an operator is on the CPU",
        "wrong": 0,
        "curve": [[0, 5.0, 9.0], [1, 6.0, 9.0]],
    }
    table = page_script.soak_table(record({"detr": found}))
    assert line_of(table, "detr", "first run") == ["1", "5", "9"]
    assert "last run" not in table
    assert "2 CUDA graphs (an operator is on the CPU);" in table
