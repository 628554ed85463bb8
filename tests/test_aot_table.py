"""docs/tensorrt.md holds what aot_table.py compiled, and what it holds still compiles."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

import shared_data
from benchmark_scripts import FOLDER, benchmark
from fusing import ops
from vitesse.artifact import Store
from vitesse.engines import EngineRow

PAGE = FOLDER.parent / "docs" / "tensorrt.md"
REFUSAL = (
    "tensorrt_rtx cannot build x.onnx\n"
    "  likely cause: no FP32 product | none (operator MatMul, node 'x')\n"
    "  next step: FP16"
)


@pytest.fixture(scope="module")
def aot() -> ModuleType:
    return benchmark("aot_table")


# --- the page


def test_the_page_is_made_from_the_committed_results(aot: ModuleType) -> None:
    page = PAGE.read_text()
    assert aot.page_with_table(page) == page


@pytest.mark.parametrize("name", ["aot", "together"])
def test_a_changed_figure_and_a_page_without_markers_are_found(aot: ModuleType, name: str) -> None:
    page = PAGE.read_text()
    changed = page.replace(f"<!-- {name}:begin -->\n", f"<!-- {name}:begin -->\n6.1 MB ")
    assert changed != page
    assert aot.page_with_table(changed) == page
    with pytest.raises(SystemExit, match=f"{name}:begin"):
        aot.page_with_table(page.replace(f"<!-- {name}:end -->", ""))


def test_what_was_not_compiled_is_not_run(
    aot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "RESULTS", tmp_path / "none.json")
    assert aot.section() == aot.together_section() == "Not run: `python benchmarks/aot_table.py`."
    assert next(aot.surprises("vit_fashion")).startswith("vit_fashion is not in none.json")


@pytest.fixture
def few(aot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Results of one model in two forms, one of them refused for sm75."""
    engine = {"seconds": 1.26, "bytes": 6_050_748, "precision": "fp16"}
    found = {
        "command": "python this",
        "tensorrt_rtx": "1.7",
        "batch": [1, 1, 8],
        "environment": {
            "cpu": {"model": "A CPU", "usable_cores": 2, "flags": []},
            "packages": {},
            "date": "2026-11-22T08:00:00",
        },
        "models": {
            "vit_fashion": {
                "fp32": {
                    "onnx_bytes": 4_930_000,
                    "rewritten": {"lowered:attention": 6},
                    "engines": {"sm75": {"refused": REFUSAL}, "sm86": engine},
                    "together": {},
                },
                "fp16": {
                    "onnx_bytes": 2_490_000,
                    "rewritten": {},
                    "engines": {"sm75": engine, "sm86": engine},
                    "together": {"sm75,sm86": {**engine, "bytes": 6_700_000}},
                },
            }
        },
    }
    monkeypatch.setattr(aot, "RESULTS", tmp_path / "few.json")
    aot.RESULTS.write_text(json.dumps(found))
    return found


def test_a_line_has_size_and_seconds_or_the_number_of_a_refusal(aot: ModuleType, few: dict[str, Any]) -> None:
    lines = aot.section().splitlines()
    title = aot.SUBJECTS["vit_fashion"].title
    assert f"| {title} | FP32 | 4.9 | refused 1 | not run | 6.1 MB, 1.3 s | not run | not run |" in lines
    assert f"| {title} | INT8, the rest FP32 |{' not run |' * 6}" in lines
    assert "Refused 1: no FP32 product \\| none" in lines
    assert f"Rewritten before the build: {title}, FP32: 6 attention." in lines
    assert sum(line.count("not run") for line in lines) == 3 + 3 + 2 * 6 + 4 * 4 * 6


def test_plans_for_several_stand_beside_those_for_one(aot: ModuleType, few: dict[str, Any]) -> None:
    (line,) = aot.together_section().splitlines()[2:]
    assert line.endswith("| FP16 | sm75 6.05, sm86 6.05 | sm75 sm86: 6.70 |")


def test_a_change_of_what_compiles_is_a_surprise(
    aot: ModuleType, few: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = {"seconds": 9.0, "bytes": 7, "precision": "fp16"}
    now = {
        "fp32": {"engines": {"sm75": engine}},
        "fp16": {"engines": {"sm75": {"refused": "no"}, "sm86": engine}},
    }
    monkeypatch.setattr(aot, "compiled", lambda name, wanted, quick: now)
    assert list(aot.surprises("vit_fashion")) == [
        f"vit_fashion fp32 sm75: refused: {REFUSAL} → 7 bytes",
        "vit_fashion fp16 sm75: 6050748 bytes → refused: no",
    ]
    monkeypatch.setattr(aot, "compiled", lambda name, wanted, quick: few["models"][name])
    assert list(aot.surprises("vit_fashion")) == []


@pytest.mark.parametrize(
    ("lines", "code"), [([], 0), (["fp16 sm75: 7 bytes → refused"], "fp16 sm75: 7 bytes → refused")]
)
def test_a_surprise_ends_the_quick_run_with_an_error(
    aot: ModuleType, lines: list[str], code: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "surprises", lambda name: iter(lines))
    monkeypatch.setattr(sys, "argv", ["aot_table.py", "--quick", "vit_fashion"])
    with pytest.raises(SystemExit) as ended:
        aot.main()
    assert ended.value.code == code


def test_a_refusal_is_kept_whole_but_for_the_folder(aot: ModuleType) -> None:
    row = EngineRow("tensorrt-rtx", "sm75", refusal="cannot build /tmp/x/a.onnx\n  next step: FP16")
    assert aot.told(row, "/tmp/x") == {"refused": "cannot build a.onnx\n  next step: FP16"}


def committed(aot: ModuleType) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for name, forms in aot.results()["models"].items():
        for form, one in forms.items():
            for capability, engine in one["engines"].items():
                yield name, form, capability, engine


def test_every_model_precision_and_gpu_was_compiled(aot: ModuleType) -> None:
    found = {(name, form, capability) for name, form, capability, _ in committed(aot)}
    wanted = {
        (name, form, capability)
        for name in aot.SUBJECTS
        for form in aot.FORMS
        for capability in aot.CAPABILITIES
    }
    assert found == wanted


def test_only_turing_refuses_and_only_fp32(aot: ModuleType) -> None:
    for name, form, capability, engine in committed(aot):
        expected = capability == "sm75" and form in ("fp32", "int8")
        assert ("refused" in engine) == expected, (name, form, capability, engine)
        if expected:
            assert "FP32 GEMM is not supported" in engine["refused"]
        else:
            assert engine["precision"] == form, (name, capability)


def test_the_quick_part_has_every_model_and_every_gpu(aot: ModuleType) -> None:
    for name, subject in aot.SUBJECTS.items():
        assert len({gpu for some in subject.quick.values() for gpu in some}) >= 2, name
        assert {"fp16", "int8+fp16"} <= set(subject.quick), name
    for name in ("vit_fashion", "detr_fashion"):
        quick = aot.SUBJECTS[name].quick
        assert set(quick) == set(aot.FORMS)
        assert quick["fp16"] == quick["int8+fp16"] == aot.CAPABILITIES


@pytest.mark.parametrize(
    # Three layers of the DETR's encoder have one attention, those of its decoder two.
    ("name", "attentions"),
    [("vit_fashion", 2), ("detr_fashion", 3 + 2 * 2)],
)
def test_the_quick_part_has_two_of_equal_layers_and_all_else(
    aot: ModuleType, tmp_path: Path, name: str, attentions: int
) -> None:
    subject = aot.SUBJECTS[name]
    whole, images = subject.open(tmp_path)
    part, same_images = subject.open_quick(tmp_path)
    assert (part.spec, same_images) == (whole.spec, images)
    here, there = (ops(onnx.load(one.path)) for one in (part, aot.fused(whole, Store(tmp_path / "whole"))))
    assert here["Attention"] == attentions < there["Attention"]
    assert here["Conv"] == there["Conv"] > 0
    assert here.keys() == there.keys()


# --- the library itself


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_fashion",
        "detr_fashion",
        "vit_b16",
        pytest.param("deimv2_atto", marks=pytest.mark.long),
        pytest.param("detr_r50", marks=pytest.mark.long),
    ],
)
def test_it_compiles_as_the_committed_table_says(name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    if name == "deimv2_atto":
        shared_data.shared("deimv2")
        shared_data.shared("coco_ccby")
    if name in ("vit_b16", "detr_r50") and find_spec("torch") is None:
        pytest.skip("needs torch, for the network with random weights")
    # In a process of its own: the library has ended one with a segmentation fault before.
    command = [sys.executable, str(FOLDER / "aot_table.py"), "--quick", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
