"""Rows for eight bits beside FP16: which runs make them, from what, and that a GPU can be given them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from fashion import VIT
from fusing import ops
from vitesse import pipeline
from vitesse.cli import main
from vitesse.ledger import Row, Verdict
from vitesse.precision import rows
from vitesse.precision.rows import wants_half_too
from vitesse.recipe import DataOptions, MeasureOptions, Recipe
from vitesse.run import Run
from vitesse.selection import select

IMAGES = VIT.parent / "vit"
QUICK = Recipe(
    target="onnxruntime",
    precisions=("fp32", "fp16", "int8"),
    data=DataOptions(limit=20, calib_images=8),
    measure=MeasureOptions(seconds=0.05, min_rounds=8, parity_images=2),
    max_drop=100.0,  # points on 20 images say nothing here
)
EIGHT = ("int8", "fp8")


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_gets_both_where_both_precisions_are_asked_for(target: str) -> None:
    recipe = replace(QUICK, target=target)
    assert [wants_half_too(recipe, number) for number in EIGHT] == [True, False]
    assert not wants_half_too(replace(recipe, precisions=("fp32", "int8")), "int8")
    assert not wants_half_too(replace(recipe, precisions=("fp16",)), "int8")


def test_a_cpu_does_not_which_could_only_reject_it() -> None:
    for target in ("cpu", "onnxruntime", "openvino"):
        assert not wants_half_too(replace(QUICK, target=target), "int8")


def test_naming_it_is_enough_on_any_target() -> None:
    named: Any = SimpleNamespace(target="cpu", precisions=("fp8+fp16",))
    assert [wants_half_too(named, number) for number in EIGHT] == [False, True]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, short_races: None) -> Run:
    """A run that takes the runtime of this machine for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "GPUS", ("onnxruntime",))
        # The search for blocks is no part of this.
        patch.setattr(pipeline, "searched_rows", lambda *_: iter(()))
        return pipeline.optimize(VIT, data=IMAGES, out=tmp_path_factory.mktemp("runs") / "run", recipe=QUICK)


def row_of(run: Run, stage: str) -> Row:
    return next(row for row in run.ledger.rows if row.stage == stage)


def test_the_row_stands_behind_int8_and_is_judged_by_emulation(run: Run) -> None:
    stages = [row.stage for row in run.ledger.rows]
    assert stages[3:6] == ["fp16", "int8", "int8+fp16"]
    row = row_of(run, "int8+fp16")
    assert row.verdict in (Verdict.PASS, Verdict.REJECTED)
    assert row.accuracy is not None and row.accuracy.images == 20
    assert any("would compute in float32" in note for note in row.notes)
    assert row.changes["quantisers with FP16 scales"] == 86


def test_the_file_is_symmetric_with_weights_of_eight_bits_whatever_the_cpu(run: Run) -> None:
    ref = row_of(run, "int8+fp16").artifact
    assert ref is not None
    model = onnx.load(run.folder / ref.path)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert not any(stored[node.input[2]].any() for node in quantisers)
    assert max(abs(stored[node.input[0]]).max() for node in quantisers if node.input[0] in stored) == 127
    assert ops(model)["QuantizeLinear"] == 25


def test_the_islands_of_fp16_are_looked_for_once(run: Run) -> None:
    kept = [json.loads(path.read_text()) for path in (run.folder / "trials").glob("*.json")]
    assert {"islands": []} in kept


def test_known_islands_are_taken_and_not_looked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("islands were looked for again")

    monkeypatch.setattr(rows, "find_islands", never)
    course: Any = SimpleNamespace(folder=SimpleNamespace(folder=tmp_path), data_key="images", recipe=QUICK)
    course.dataset = SimpleNamespace(calib=SimpleNamespace(samples=()))
    store, key = rows._memory(course, run.artifact)
    store.finish({"islands": ["a", "b"]}, *key)
    assert rows._known_islands(course, run.artifact, "int8+fp16") == ["a", "b"]
    course.data_key = "other images"
    with pytest.raises(AssertionError, match="looked for again"):
        rows._known_islands(course, run.artifact, "int8+fp16")


def test_a_gpu_can_be_given_the_stage(run: Run) -> None:
    found = select(run, "cuda", "int8+fp16")
    assert found.row.stage == "int8+fp16" and found.artifact.backend == "cuda"


def test_quantize_half_writes_such_a_file_directly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vit.onnx"
    command = ["quantize", str(VIT), "--data", str(IMAGES), "--calib-images", "8", "--half", "-o", str(out)]
    assert main([*command, "--number", "fp8", "--keep", "blocks.0.mlp"]) == 0
    said = capsys.readouterr().out
    assert "Linear to FP8: 34" in said and "quantisers with FP32 scales: " in said
    kinds = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    assert {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT8E4M3FN} <= kinds
    assert onnx.TensorProto.FLOAT not in kinds or "quantisers with FP32 scales: 0" not in said
