"""docs/quantisation.md holds what int8_half_forms.py measured, and every form is the one that its name says."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from benchmark_scripts import FOLDER, benchmark

PAGE = FOLDER.parent / "docs" / "quantisation.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("int8_half_forms")


def test_the_page_is_made_from_the_committed_results(script: ModuleType) -> None:
    page = PAGE.read_text()
    assert script.page_with_tables(page) == page
    changed = page.replace("<!-- half-forms:begin -->\n", "<!-- half-forms:begin -->\n0.38, ")
    assert changed != page and script.page_with_tables(changed) == page


def test_what_was_not_run_is_named_with_its_command(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "none.json")
    said = script.section()
    for command in ("--forms", "detr_fashion", "vit_fashion"):
        assert f"ot run: `python benchmarks/int8_half_forms.py {command}`." in said


def test_a_cell_shows_size_and_weights_or_why_it_was_refused(script: ModuleType) -> None:
    assert script.form_cell({"bytes": 1_234_567, "weights_held": 3, "weights": 4}) == "1235 (3/4)"
    assert script.form_cell({"bytes": 1_000, "weights_held": 0, "weights": 0}) == "1"
    assert script.form_cell({"refused": "…: FP32 GEMM is not supported. In …"}) == "no FP32 product"
    assert script.form_cell({"refused": "something new"}) == "refused"


def accuracy() -> dict[str, Any]:
    row = {"number": "int8", "plain_bytes": 2_000_000, "mixed_bytes": 1_500_000}
    rows = [
        {**row, "method": "minmax", "plain": 0.80, "mixed": 0.79, "casts": 0.81},
        {**row, "method": "mse", "plain": 0.80, "mixed": 0.802, "casts": 0.80},
    ]
    return {"original": 0.81, "rows": rows}


def test_points_lost_and_their_difference_follow_from_the_values(script: ModuleType) -> None:
    lines = script.accuracy_table(accuracy()).splitlines()
    assert lines[2] == "| INT8 | minmax | 1.00 | 2.00 | 1.00 | 0.00 | 2.00 → 1.50 |"
    assert lines[3] == "| INT8 | mse | 1.00 | 0.80 | −0.20 | 1.00 | 2.00 → 1.50 |"
    assert script.mean_difference(accuracy(), "int8") == pytest.approx(0.4)
    assert script.mean_difference(accuracy(), "int8", "casts") == pytest.approx(-0.5)


def test_the_committed_accuracy_beside_fp16_is_near_that_beside_fp32(script: ModuleType) -> None:
    """FP16 alone costs the DETR 0.07 points; what it costs INT8 is not more than that and chance."""
    found = script.results()
    for name, most in {"vit_fashion": 0.05, "detr_fashion": 0.15}.items():
        for number in script.NUMBERS:
            assert script.mean_difference(found[name], number) <= (most if number == "int8" else 0.15), name


# --- the forms


@pytest.fixture(scope="module")
def pairs(script: ModuleType) -> dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]:
    return {title: (floats, script.quantised(floats, "int8")) for title, floats in script.layers().items()}


def types(script: ModuleType, model: onnx.ModelProto) -> dict[str, set[int]]:
    """Element types of the scales of activations and of weights."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, set[int]] = {"activations": set(), "weights": set()}
    for node, of_weights in script.quantisers(model):
        found["weights" if of_weights else "activations"].add(stored[node.input[1]])
    return found


EXPECTED = {
    "rest FP32": ({1}, {1}),
    "rest FP16, scales FP16": ({10}, {10}),
    "rest FP16, scales FP32 between casts": ({1}, {1}),
    "rest FP16, scales of activations FP32": ({1}, {10}),
    "rest FP16, scales of weights FP32": ({10}, {1}),
    "rest FP16, scales FP32, `output_dtype`": ({1}, {1}),
    "rest FP16, only weights quantised": (set(), {10}),
}


def test_every_form_has_the_scales_that_its_name_says(
    script: ModuleType, pairs: dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]
) -> None:
    assert set(EXPECTED) | {"FP32, not quantised", "FP16, not quantised"} == set(script.FORMS)
    for floats, plain in pairs.values():
        for form, (activations, weights) in EXPECTED.items():
            found = types(script, script.FORMS[form](floats, plain))
            assert (found["activations"], found["weights"]) == (activations, weights), form


def test_weights_are_told_from_their_beginning(
    script: ModuleType, pairs: dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]
) -> None:
    _, plain = next(iter(pairs.values()))
    wanted = script.stored_weights(plain)
    held = [
        numpy_helper.to_array(one).tobytes()
        for one in plain.graph.initializer
        if one.data_type == TensorProto.INT8
    ]
    assert wanted and all(any(one in array for array in held) for one in wanted)


def test_the_committed_forms_say_what_the_page_says_of_them(script: ModuleType) -> None:
    groups = json.loads(script.RESULTS.read_text())["forms"]["groups"]
    cells = {
        (group["title"][:3], group["number"], row["form"], target): script.form_cell(found)
        for group in groups
        for row in group["rows"]
        for target, found in row["targets"].items()
    }
    for form in ("rest FP16, scales FP16", "rest FP16, scales FP32 between casts"):
        for target in script.TARGETS:
            assert (
                cells["Two", "int8", form, target][0].isdigit()
                and cells["Thr", "int8", form, target][0].isdigit()
            )
    for form in ("rest FP16, scales of activations FP32", "rest FP16, scales of weights FP32"):
        assert {cells["Two", "int8", form, target] for target in script.TARGETS} == {"scales differ"}
    assert cells["Two", "int8", "rest FP32", "sm75"] == "no FP32 product"
    assert cells["Two", "fp8", "rest FP16, scales FP16", "sm86"] == "no FP8"
    assert cells["Two", "fp8", "rest FP16, scales FP16", "sm89"][0].isdigit()
