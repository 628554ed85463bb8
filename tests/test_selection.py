"""Which graph of a run a target gets, and what one GPU gets instead."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engine_runs import BF16, FP16, FP32, WITH_ISLAND, a_run
from vitesse.errors import RunFolderError, UsageError
from vitesse.ledger import Row, Verdict
from vitesse.run import Run, open_run
from vitesse.selection import keeps_accuracy, select, select_for

GRAPHS = {"source": FP32, "fuse": FP32, "fp16": FP16, "int8": FP32}
GPUS = ("cuda", "tensorrt", "tensorrt-rtx")


def stages_of(folder: Path, graphs: dict[str, onnx.ModelProto], **drops: float) -> Run:
    return a_run(folder, graphs, drops=drops)


@pytest.mark.parametrize("target", GPUS)
def test_a_gpu_gets_the_fp16_graph_and_says_why(target: str, tmp_path: Path) -> None:
    found = select(stages_of(tmp_path, GRAPHS), target)
    assert found.row.stage == "fp16"
    assert found.artifact.backend == target
    assert "16 bits" in found.why


def test_a_cpu_gets_what_the_run_chose(tmp_path: Path) -> None:
    for target in ("", "cpu", "onnxruntime"):
        assert select(stages_of(tmp_path, GRAPHS), target).row.stage == "source"


def test_bf16_follows_fp16_and_fp32_both(tmp_path: Path) -> None:
    with_bf16 = stages_of(
        tmp_path / "a", {"source": FP32, "fuse": FP32, "bf16": BF16, "fp16": FP16}, fp16=3.0
    )
    assert select(with_bf16, "cuda").row.stage == "bf16", "FP16 lost three points"
    without = stages_of(tmp_path / "b", {"source": FP32, "fuse": FP32, "int8": FP32, "int8+fp16": FP16})
    found = select(without, "cuda")
    assert found.row.stage == "fuse", "eight bits are taken only where they are asked for"
    assert "no FP16 graph" in found.why


def test_a_named_step_is_taken_and_an_unknown_one_lists_the_steps(tmp_path: Path) -> None:
    run = stages_of(tmp_path, GRAPHS)
    assert select(run, "cuda", "int8").row.stage == "int8"
    with pytest.raises(UsageError, match="source, fuse, fp16, int8"):
        select(run, "cuda", "fp4")


def test_a_step_that_lost_too_much_is_not_built(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the stage int8 of .* did not keep its accuracy"):
        select(stages_of(tmp_path, GRAPHS, int8=4.0), "cuda", "int8")


def test_a_step_for_one_runtime_is_not_built_for_another(tmp_path: Path) -> None:
    run = stages_of(tmp_path, {**GRAPHS, "int8:openvino": FP32})
    with pytest.raises(UsageError, match="written for another runtime than cuda") as refused:
        select(run, "cuda", "int8:openvino")
    assert refused.value.expected == "one of: source, fuse, fp16, int8"
    assert select(run, "openvino", "int8:openvino").row.stage == "int8:openvino"


def test_too_slow_on_the_machine_of_the_run_is_no_loss_of_accuracy(tmp_path: Path) -> None:
    run = stages_of(tmp_path, GRAPHS)

    def judged(verdict: Verdict, drop: float | None) -> bool:
        row = next(row for row in run.ledger.rows if row.accuracy is not None)
        assert row.accuracy is not None
        return keeps_accuracy(run, replace(row, verdict=verdict, accuracy=replace(row.accuracy, drop=drop)))

    assert judged(Verdict.REJECTED, 0.4)
    assert not judged(Verdict.REJECTED, 0.6)
    assert not judged(Verdict.REJECTED, None)
    assert not judged(Verdict.FAIL, 0.0)
    assert not judged(Verdict.UNKNOWN, 0.0)
    assert not keeps_accuracy(run, Row("x", Verdict.REJECTED, "why"))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    run = stages_of(tmp_path, GRAPHS)
    file = next((tmp_path / "artifacts").glob("fp16-*.onnx"))
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(RunFolderError, match="sha256"):
        select(open_run(run.folder), "tensorrt")


# --- Turing


def test_turing_gets_fp16_in_place_of_fp32_products(tmp_path: Path) -> None:
    run = stages_of(tmp_path, GRAPHS)
    for stage in ("fuse", "int8"):
        found = select_for(run, "tensorrt-rtx", stage, "sm75")
        assert found.row.stage == "fp16"
        assert found.why.startswith(f"fp16 in place of {stage}: it multiplies matrices in FP32 (1 operators")
        assert select_for(run, "tensorrt-rtx", stage, "sm86").row.stage == stage
        assert select_for(run, "tensorrt", stage, "sm75").row.stage == stage, "only RTX lacks the kernels"
    assert select_for(run, "tensorrt-rtx", "", "sm75").row.stage == "fp16"
    assert "in place" not in select_for(run, "tensorrt-rtx", "", "sm75").why


def test_turing_gets_int8_with_fp16_where_the_run_has_it(tmp_path: Path) -> None:
    run = stages_of(tmp_path, {**GRAPHS, "int8+fp16": FP16})
    assert select_for(run, "tensorrt-rtx", "int8", "sm75").row.stage == "int8+fp16"
    assert select_for(run, "tensorrt-rtx", "fuse", "sm75").row.stage == "fp16"


def test_turing_has_no_bf16(tmp_path: Path) -> None:
    run = stages_of(tmp_path, {"source": FP32, "bf16": BF16, "fp16": FP16})
    found = select_for(run, "tensorrt-rtx", "bf16", "sm75")
    assert found.row.stage == "fp16"
    assert "BF16" in found.why


def test_without_a_graph_for_turing_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    graphs = {"source": FP32, "fuse": FP32}
    without = stages_of(tmp_path / "a", graphs)
    lossy = stages_of(tmp_path / "b", {**graphs, "fp16": FP16}, fp16=2.0)
    islands = stages_of(tmp_path / "c", {**graphs, "fp16": WITH_ISLAND})
    for run in (without, lossy, islands):
        with pytest.raises(UsageError, match="no graph that TensorRT-RTX compiles for sm75") as refused:
            select_for(run, "tensorrt-rtx", "fuse", "sm75")
        assert "vitesse optimize model.onnx --data IMAGES --precisions fp32,fp16" in refused.value.fix
    assert "fp16: it multiplies matrices in FP32 (1 operators, the first is MatMul '/1/MatMul')" in str(
        refused.value
    )
