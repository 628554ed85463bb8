"""docs/quantisation.md holds what int8_methods.py and int8_forms.py measured, and says what was not run."""

import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmark_scripts import FOLDER, benchmark
from vitesse.recipe import METHODS

PAGE = FOLDER.parent / "docs" / "quantisation.md"
ENVIRONMENT = {
    "cpu": {"model": "A CPU", "usable_cores": 2, "flags": ["avx2"]},
    "packages": {"onnxruntime": "1.31.1"},
    "date": "2026-11-22T08:00:00",
}


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    return benchmark("int8_methods")


@pytest.fixture(scope="module")
def forms() -> ModuleType:
    return benchmark("int8_forms")


# --- the page


def test_the_page_is_made_from_the_committed_results(methods: ModuleType, forms: ModuleType) -> None:
    page = PAGE.read_text()
    assert methods.page_with_table(page) == page
    assert forms.page_with_tables(page) == page


def test_a_changed_figure_and_a_page_without_markers_are_found(
    methods: ModuleType, forms: ModuleType
) -> None:
    for make, name in ((methods.page_with_table, "methods"), (forms.page_with_tables, "forms")):
        page = PAGE.read_text()
        changed = page.replace(f"<!-- {name}:begin -->\n", f"<!-- {name}:begin -->\n0.38, ")
        assert make(changed) == page
        with pytest.raises(SystemExit, match=f"{name}:begin"):
            make(page.replace(f"<!-- {name}:end -->", ""))


def test_what_was_not_run_is_named_with_its_command(
    methods: ModuleType, forms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script in (methods, forms):
        monkeypatch.setattr(script, "RESULTS", tmp_path / f"{script.__name__}.json")
    assert forms.section() == "Not run: `python benchmarks/int8_forms.py`."
    lines = methods.section().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"`python benchmarks/int8_methods.py {name}`"
        for name in ("detr_fashion", "vit_fashion", "deimv2_atto")
    ]
    assert all("not run" in line for line in lines)
    methods.RESULTS.write_text(json.dumps({"vit_fashion": lowered(methods, {})}))
    assert methods.section().count("not run: `python") == 2


# --- accuracy by method


def lowered(methods: ModuleType, drops: dict[Any, float]) -> dict[str, Any]:
    """Return results of one model in which every way to lower loses a point, but for `drops`."""
    rows = [
        {**asdict(trial), "value": 0.9 - drop / 100, "drop": drop}
        for trial in methods.TRIALS
        for drop in [drops.get(trial, 1.0)]
    ]
    return {
        "command": "python this",
        "environment": ENVIRONMENT,
        "metric": "top1",
        "images": 2000,
        "calibration_images": 200,
        "original": 0.9,
        "flops_share": 0.977,
        "weight_bits": 8,
        "rows": rows,
    }


def test_every_number_meets_every_method_and_bias_correction_its_absence(methods: ModuleType) -> None:
    found = {(one.number, one.method, one.bias_correction, one.smooth) for one in methods.TRIALS}
    wanted = {(number, method, True, 0.0) for number in ("uint8", "int8") for method in METHODS}
    wanted |= {("uint8", "percentile", False, 0.0), ("uint8", "percentile", True, 0.5)}
    wanted |= {("fp8", "minmax", True, 0.0), ("fp8", "minmax", False, 0.0)}
    assert found == wanted
    assert len(methods.TRIALS) == len(found)
    assert {one.number for one in methods.TRIALS if one.symmetric} == {"int8", "fp8"}


def test_a_line_of_the_table_shows_how_it_was_lowered_and_what_each_model_lost(methods: ModuleType) -> None:
    smoothed = methods.Trial("uint8", "percentile", smooth=0.5)
    whole, part = lowered(methods, {smoothed: -0.154}), lowered(methods, {smoothed: 0.377})
    part["rows"] = part["rows"][:-1]
    lines = methods.table({"vit_fashion": whole, "detr_fashion": part}).splitlines()
    assert lines[0].count(", 2000 images |") == 2
    assert lines[0].index("DETR") < lines[0].index("ViT")
    assert "| uint8 | percentile | yes | 0.5 | 0.38 | −0.15 |" in lines
    assert lines[-1] == "| FP8 | minmax | no | no | not run | 1.00 |"
    assert len(lines) == 2 + len(methods.TRIALS)


def test_metric_images_share_and_command_stand_beside_the_table(methods: ModuleType) -> None:
    said = methods.description("vit_fashion", lowered(methods, {}))
    assert "top-1 0.9000 on 2000 images, calibrated on 200; 98 % of the operations" in said
    assert "weights of 8 bits. `python this` on A CPU, 2 cores, avx2; onnxruntime 1.31.1; 2026-11-22." in said


def test_every_committed_drop_is_the_original_less_what_is_left(methods: ModuleType) -> None:
    for name, found in methods.results().items():
        assert {methods.trial_of(row) for row in found["rows"]} == set(methods.TRIALS), name
        for row in found["rows"]:
            assert row["drop"] == pytest.approx(100 * (found["original"] - row["value"]), abs=1e-9), (
                name,
                row,
            )


# --- speed by form


def timed(rounds: dict[str, list[list[float]]], foreign: float = 0.0) -> dict[str, Any]:
    return {
        "title": "Some layers",
        "kernels": {"float32": {"Gemm": 4}, "eight bits": {"QGemm": 3, "Gemm": 1}},
        "refused": {"openvino: eight bits": "cannot\nread it"},
        "mean_error": {},
        "samples": {"rounds": rounds, "foreign_cores": foreign},
    }


ROUNDS = {
    "onnxruntime: float32": [[10.0, 10.0, 99.0], [20.0, 20.0, 20.0], [30.0, 30.0, 30.0]],
    "onnxruntime: eight bits": [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0], [5.0, 5.0, 50.0]],
    "openvino: float32": [[8.0, 8.0, 8.0]] * 3,
}


def test_a_gain_is_the_median_over_rounds_of_float32_over_the_form(forms: ModuleType) -> None:
    lines = forms.table(timed(ROUNDS)).splitlines()
    assert lines[2] == "| float32 | 4 Gemm | 20.0 | – | 8.0 | – |"
    # Ratios of the rounds are 2, 4 and 6, their quartiles 3 and 5.
    assert lines[3] == "| eight bits | 1 Gemm, 3 QGemm | 5.0 | 4.00× (3.00–5.00) | refused | – |"


def test_a_busy_machine_and_a_refusal_are_said_beside_the_table(
    forms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "RESULTS", tmp_path / "forms.json")
    found = {"command": "python this", "environment": ENVIRONMENT, "threads": 1}
    groups = [timed(ROUNDS, 0.04), timed(ROUNDS, 0.6)]
    forms.RESULTS.write_text(json.dumps({**found, "groups": groups}))
    text = forms.section()
    assert "`python this` on A CPU, 2 cores, avx2; onnxruntime 1.31.1; 2026-11-22; 1 thread." in text
    assert text.count("Some layers:") == 1
    assert text.count("Some layers (other processes kept 0.6 cores busy meanwhile):") == 1
    assert "Refused, openvino: eight bits: cannot read it" in text


@pytest.mark.parametrize("kind", ["linear", "convolutions"])
def test_every_form_computes_what_float32_does_but_for_rounding(forms: ModuleType, kind: str) -> None:
    small = (
        forms.linear_layers(rows=5, width=32, hidden=64)
        if kind == "linear"
        else forms.convolutions(32, 16, 6, 8)
    )
    found = forms.measured(small, seconds=0.0, min_rounds=1)
    assert set(found["kernels"]) == set(small.graphs)
    assert max(found["mean_error"].values()) < forms.MOST_ERROR
    # Every form but float32 itself rounds; one that left no trace would not be one.
    assert all(error > 1e-3 for name, error in found["mean_error"].items() if "float32" not in name)
    assert len(found["mean_error"]) + len(found["refused"]) == 2 * len(small.graphs)
    assert forms.table(found).count("\n") == 1 + len(small.graphs)


def test_a_form_that_computes_something_else_has_no_speed(forms: ModuleType) -> None:
    right = np.ones((2, 3), np.float32)
    assert forms.check_agreement({"onnxruntime: float32": right, "openvino: b": right * 1.1})
    for wrong in (right * 1.2, right * np.nan):
        with pytest.raises(SystemExit, match="openvino: b differs from float32"):
            forms.check_agreement({"onnxruntime: float32": right, "openvino: b": wrong})


def test_each_form_of_the_convolutions_rounds_where_its_name_says(
    forms: ModuleType,
) -> None:
    graphs = forms.convolutions(32, 16, 6, 8).graphs
    counts = {
        name: sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)
        for name, graph in graphs.items()
    }
    # Three blocks: three inputs each; also every convolution's result; or that of the last one in each block.
    assert sorted(counts.values()) == [0, 9, 9, 12, 12, 18]
