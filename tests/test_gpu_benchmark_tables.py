"""docs/torch_cuda.md: every figure follows from the raw results; what was not run, refused or disturbed says so."""

import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmark_scripts import FOLDER
from gpu_benchmark import candidate, gpu_module, group, record
from gpu_records import line_of

PAGE = FOLDER.parent / "docs" / "torch_cuda.md"
B16 = ("ViT-B/16, 224×224", "32")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return gpu_module("tables")


def results(tables: ModuleType, folder: Path, *records: dict[str, Any]) -> Any:
    for at, one in enumerate(records):
        (folder / f"torch_cuda_{at}.json").write_text(json.dumps(one))
    return tables.read(folder)


def raced(**groups: Any) -> dict[str, Any]:
    return record("race", groups={name.replace("__", ":"): one for name, one in groups.items()})


# --- the committed results


def test_the_page_is_what_the_committed_results_give(tables: ModuleType) -> None:
    page = PAGE.read_text()
    assert tables.page_with_tables(page, tables.read()) == page


def test_every_published_figure_follows_from_its_raw_samples(tables: ModuleType) -> None:
    for name, found in tables.read().groups.items():
        for label, samples in found.get("samples", {}).items():
            ms = statistics.median(ms for block in samples["calls"] for ms in block)
            assert found["candidates"][label]["ms"] == pytest.approx(ms, abs=1e-4), (name, label)
            single = statistics.median(ms for block in samples["single"] for ms in block)
            assert found["candidates"][label]["single_ms"] == pytest.approx(single, abs=1e-4), (name, label)


def test_the_committed_results_are_small() -> None:
    files = list((FOLDER / "results").glob("torch_cuda_*.json"))
    assert sum(file.stat().st_size for file in files) < 10_000_000


def test_the_rows_and_targets_are_those_that_were_set(tables: ModuleType) -> None:
    targets = {key: ms for key, ms in tables.TARGETS.items() if ms is not None}
    assert targets == {
        ("vit_b16", 32, "fp16"): 2.3,
        ("vit_b16", 32, "fp8"): 1.7,
        ("vit_l16", 32, "fp16"): 7.5,
        ("vit_l16", 32, "fp8"): 5.0,
        ("vit_b16", 1, "fp16"): 0.45,
        ("detr_r50", 1, "fp16"): 1.3,
        ("detr_r50", 8, "fp16"): 5.0,
    }
    assert {key[0] for key in tables.TARGETS} == set(tables.TITLES)


# --- made-up ones


def test_without_results_every_row_is_not_run(tables: ModuleType, tmp_path: Path) -> None:
    found = results(tables, tmp_path)
    assert line_of(tables.target_table(found), *B16, "FP8") == [
        "1.7",
        "not run",
        "not run",
        "not run",
        "–",
        "–",
    ]
    assert set(line_of(tables.peer_table(found), *B16)) == {"not run"}
    for name, made in tables.SECTIONS.items():
        assert "not run" in made(found), name


def test_a_row_has_time_speed_verdict_and_the_fastest_peer(tables: ModuleType, tmp_path: Path) -> None:
    times = {"torch-cuda fp16": 2.0, "torch-cuda fp8": 1.9, "torch eager": 8.0, "torch.compile": 3.0}
    one = group({label: candidate(ms) for label, ms in times.items()}, ("fp16", "fp8"))
    found = results(tables, tmp_path, raced(vit_b16__32=one))
    table = tables.target_table(found)
    assert line_of(table, *B16, "FP16") == ["2.3", "2.000", "16,000", "yes", "compile, 3.000", "1.50×"]
    missed = ["1.7", "1.900", "16,842", "no, 1.12 times the target", "compile, 3.000", "1.58×"]
    assert line_of(table, *B16, "FP8") == missed
    cells = line_of(tables.peer_table(found), *B16)
    assert cells == ["2.000", "1.900", "8.000", "not run", "3.000", *["not run"] * 4]


def test_a_target_is_met_by_equality_and_not_by_a_little_more(tables: ModuleType) -> None:
    assert tables.met(2.3, 2.3) == "yes"
    assert tables.met(2.31, 2.3).startswith("no")
    assert tables.met(None, 2.3) == "not run"
    assert tables.met(2.0, None) == "–"


def test_a_refused_candidate_has_a_number_and_its_words_below(tables: ModuleType, tmp_path: Path) -> None:
    one = group({"torch eager": candidate(8.0)})
    one["refused"] = {
        "torch-cuda fp16": "wrong | at node 7",
        "torch.compile max-autotune": "not finished in 60 s",
    }
    found = results(tables, tmp_path, raced(vit_b16__32=one))
    table = tables.target_table(found)
    assert line_of(table, *B16, "FP16")[1:4] == ["– (1)", "not run", "not run"]
    assert "(1) wrong \\| at node 7" in table.splitlines()
    assert "(2) not finished in 60 s" in tables.peer_table(found)


def test_a_disturbed_run_and_a_slow_plan_carry_a_note(tables: ModuleType, tmp_path: Path) -> None:
    one = group({"torch-cuda fp16": candidate(2.0, notes=["runs in plain PyTorch"])})
    one["observed"] = {"verdict": "throttled", "why": "software power cap"}
    table = tables.target_table(results(tables, tmp_path, raced(vit_b16__32=one)))
    assert line_of(table, *B16, "FP16")[1] == "2.000 (1)"
    assert "(1) throttled: software power cap; runs in plain PyTorch" in table


def test_a_group_that_failed_says_why(tables: ModuleType, tmp_path: Path) -> None:
    found = results(tables, tmp_path, raced(vit_b16__32={"precisions": ["fp16"], "failed": "out of memory"}))
    table = tables.target_table(found)
    assert line_of(table, *B16, "FP16")[1] == "failed (1)"
    assert "(1) out of memory" in table
    assert "failed (1)" in tables.peer_table(found)


def test_a_newer_run_replaces_a_group_as_a_whole(tables: ModuleType, tmp_path: Path) -> None:
    old = raced(vit_b16__32=group({"torch-cuda fp16": candidate(2.0), "torch eager": candidate(1.0)}))
    new = raced(vit_b16__32=group({"torch-cuda fp16": candidate(3.0)}))
    old["environment"]["date"] = "2026-11-21T00:00:00+00:00"
    found = results(tables, tmp_path, new, old)
    assert line_of(tables.target_table(found), *B16, "FP16")[1] == "3.000"
    assert line_of(tables.peer_table(found), *B16)[2] == "not run"
    assert len(found.origins) == 2


def test_a_newer_run_without_the_target_replaces_no_group_that_has_it(
    tables: ModuleType, tmp_path: Path
) -> None:
    old = raced(vit_b16__32=group({"torch-cuda fp16": candidate(2.0)}))
    new = raced(
        vit_b16__32=group({"torch eager": candidate(1.0)}), vit_b16__1=group({"torch eager": candidate(4.0)})
    )
    old["environment"]["date"] = "2026-11-21T00:00:00+00:00"
    found = results(tables, tmp_path, old, new)
    assert line_of(tables.target_table(found), *B16, "FP16")[1] == "2.000"
    assert found.groups["vit_b16:1"]["candidates"]["torch eager"]["ms"] == 4.0


def test_groups_and_profiles_stand_as_the_targets_do(tables: ModuleType, tmp_path: Path) -> None:
    profile = {"kernels": [], "steps": []}
    first = raced(detr_r50__8=group({}), vit_b16__32=group({}), vit_b16__3=group({}))
    second = {**raced(vit_l16__32=group({})), "rows": {"detr_r50:1:fp16": profile, "vit_b16:32:fp8": profile}}
    found = results(tables, tmp_path, first, second)
    assert list(found.groups) == ["vit_b16:32", "vit_l16:32", "detr_r50:8", "vit_b16:3"]
    assert list(found.profiles) == ["vit_b16:32:fp8", "detr_r50:1:fp16"]


def test_a_precision_that_a_run_left_out_is_not_run(tables: ModuleType, tmp_path: Path) -> None:
    found = results(tables, tmp_path, raced(vit_b16__32=group({"torch-cuda fp16": candidate(2.0)})))
    assert line_of(tables.target_table(found), *B16, "FP8")[1] == "not run"


def test_details_have_spread_errors_and_memory(tables: ModuleType, tmp_path: Path) -> None:
    one = candidate(2.0, low_ms=1.9, high_ms=2.1)
    table = tables.detail_table(results(tables, tmp_path, raced(vit_b16__32=group({"torch eager": one}))))
    wanted = ["2.000 (1.900–2.100)", "4.000", "2.0e-03", "1.0e-03", "1,234", "1.5"]
    assert line_of(table, *B16, "torch eager") == wanted


def test_loading_has_seconds_or_why_there_are_none(tables: ModuleType, tmp_path: Path) -> None:
    fine = {"load_ms": 2500.0, "cold_start_ms": 1234.0, "unmeasured": ""}
    broken = {"load_ms": None, "cold_start_ms": None, "unmeasured": "no | driver"}
    load = {"empty": broken, "filled": fine}
    one = candidate(2.0, build={"build_s": 31.5, "artifact_mb": 173.2}, load=load)
    found = results(tables, tmp_path, raced(vit_b16__32=group({"torch-cuda fp16": one})))
    (line,) = [line for line in tables.load_table(found).splitlines() if "batch 32" in line]
    assert line.endswith("| FP16 | 31.5 | 173.2 | no \\| driver | 2.5 | – | 1.2 |")


@pytest.mark.parametrize(("loss", "said"), [(0.2, "yes"), (0.25, "no"), (-0.1, "yes")])
def test_accuracy_holds_the_loss_against_its_limit(
    tables: ModuleType, tmp_path: Path, loss: float, said: str
) -> None:
    found = {
        "images": 500,
        "reference": 0.93,
        "top1": {"fp8": 0.93 - loss / 100},
        "loss_points": {"fp8": loss},
    }
    table = tables.accuracy_lines(results(tables, tmp_path, record("accuracy", accuracy=found)))
    assert line_of(table, "FP8")[1:] == [f"{loss:.2f}", said]


def test_a_profile_has_kernels_and_steps_by_tactic(tables: ModuleType, tmp_path: Path) -> None:
    kernels = [{"kernel": "gemm|x", "us": 30.0, "launches": 2.0, "share": 0.75}]
    step = {
        "node": "a",
        "scope": "",
        "step": "Linear",
        "tactic": "triton.linear block_m=128",
        "microseconds": 15.0,
    }
    profile = {"kernels": kernels, "steps": [step, {**step, "node": "b"}, {**step, "microseconds": None}]}
    found = results(tables, tmp_path, record("profile", rows={"vit_b16:32:fp16": profile}))
    table = tables.profile_tables(found)
    assert "**ViT-B/16, 224×224, batch 32, FP16**: 30 µs in kernels." in table
    assert "| `gemm\\|x` | 2 | 30.0 | 75.0 % |" in table.splitlines()
    assert line_of(table, "Linear", "`triton.linear block_m=128`") == ["3", "30.0"]


def test_an_origin_names_file_command_gpu_and_versions(tables: ModuleType, tmp_path: Path) -> None:
    (said,) = results(tables, tmp_path, record("race")).origins
    command = "`python -m benchmarks.gpu race`"
    assert (
        said
        == f"`torch_cuda_0.json`: {command} on A GPU, driver 580.1, torch 2.11.0 (CUDA 13.0), 2026-11-22."
    )


def test_other_files_in_the_folder_are_not_read(tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "torch_cuda_kernels.json").write_text('{"tests": []}')
    assert results(tables, tmp_path).origins == []


def test_a_page_that_lost_a_mark_is_refused(tables: ModuleType, tmp_path: Path) -> None:
    page = PAGE.read_text().replace("<!-- peers:end -->", "")
    with pytest.raises(ValueError, match="peers:end"):
        tables.page_with_tables(page, tables.read(tmp_path))
