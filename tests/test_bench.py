"""`vitesse bench` on a run and on a file, here on the CPU; what is marked and what is refused."""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from fashion import FOLDER, VIT, artifact_of
from vitesse.benchmark.points import Point, Round
from vitesse.benchmark.subject import fed_with, subject
from vitesse.benchmark.table import print_points, remarks
from vitesse.benchmark.watch import CLEAN, THROTTLED, UNOBSERVED, Observed
from vitesse.cli import bench
from vitesse.cli.bench import counts
from vitesse.errors import UsageError, VitesseError
from vitesse.ledger import ArtifactRef, Ledger, Row, Verdict
from vitesse.run import IDENTITY

QUICK = ["--batch", "1,2", "--streams", "1", "--seconds", "0.06"]


def bench_with(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add(parser)
    options = parser.parse_args(list(arguments))
    options.command_line = ["vitesse", "bench", *arguments]
    return bench.run(options)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose one artifact is the small ViT."""
    folder = tmp_path / "run"
    (folder / "artifacts").mkdir(parents=True)
    artifact = artifact_of(VIT)
    shutil.copy(VIT, folder / "artifacts" / "source.onnx")
    ref = ArtifactRef("artifacts/source.onnx", artifact.sha256, artifact.bytes)
    row = Row("source", Verdict.PASS, "the untouched model", artifact=ref, run_options={"threads": 1})
    (folder / "ledger.json").write_text(Ledger("vit", "cpu", (row,), chosen=0).to_json())
    (folder / IDENTITY).write_text(json.dumps({"spec": asdict(artifact.spec)}))
    return folder


def observed(verdict: str, why: str = "") -> Point:
    return Point(8, 2, rounds=(Round(100.0, (10.0,) * 4),), observed=Observed(verdict, why))


def printed(write: Callable[[Console], None]) -> str:
    console = Console(width=140, file=io.StringIO(), record=True)
    write(console)
    return console.export_text()


def test_a_run_is_measured_and_every_sample_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert bench_with(str(run), *QUICK, "--out", str(out)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "batch streams img/s p50 ms p99 ms threads MB observed" in said
    assert "fed with random images of the model's size: speed does not depend on what they show" in said
    kept = json.loads(out.read_text())
    assert [(point["batch"], point["streams"]) for point in kept["points"]] == [(1, 1), (2, 1)]
    assert all(len(point["rounds"]) == 3 and point["rounds"][0]["host_ms"] for point in kept["points"])
    assert kept["environment"]["cpu"]["usable_cores"] >= 1
    assert kept["artifact_sha256"] == artifact_of(VIT).sha256
    assert kept["command"][:2] == ["vitesse", "bench"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_file_is_built_for_the_target_and_fed_with_images(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino", reason="needs openvino: pip install 'vitesse[openvino]'")
    images = FOLDER / "vit"
    assert bench_with(str(VIT), "--target", target, "--data", str(images), *QUICK) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"vit_fashion.onnx, built for {target}" in said
    assert f"fed with images of {images}" in said.replace(" /", " /")


def test_a_gpu_target_without_its_runtime_ends_with_1_or_3_and_the_reason(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the CUDA provider")
    try:
        code = bench_with(str(run), "--target", "cuda", *QUICK)
        said = capsys.readouterr().out
    except VitesseError as error:
        code, said = error.exit_code, str(error)
    assert code in {1, 3}
    assert "CUDA" in said or "cuda" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--stage", "fp16"], "it with a run folder only"),
        (["--target", "tpu"], "unknown target 'tpu'"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        bench_with(str(VIT), *arguments)


def test_a_preset_beside_a_run_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match=r"it with an \.onnx file only"), subject(run, "cpu", preset="vit"):
        pass


def test_a_run_without_a_step_for_the_runtime_says_which_targets_it_has(run: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"source of .* was made for onnxruntime, not for openvino"),
        subject(run, "openvino"),
    ):
        pass


def test_batches_are_made_of_the_images_over_and_over() -> None:
    fed = fed_with(artifact_of(VIT).spec, None)
    batch = fed(10)["images"]
    height, width = artifact_of(VIT).spec.preprocessing.size
    assert batch.shape == (10, 3, height, width)
    assert (batch[0] == batch[len(fed.images)]).all() and not (batch[0] == batch[1]).all()


@pytest.mark.parametrize(("text", "expected"), [("1,8,32", [1, 8, 32]), ("8, 1,8", [1, 8]), ("4", [4])])
def test_counts_are_read_rising_and_once(text: str, expected: list[int]) -> None:
    assert counts(text) == expected


@pytest.mark.parametrize("text", ["", "0,1", "1..8", "-1", "1,,2", "two"])
def test_what_is_no_list_of_counts_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 1,8,32"):
        counts(text)


@pytest.mark.parametrize("verdict", [THROTTLED, UNOBSERVED])
def test_what_is_not_clean_is_marked_in_its_line_and_explained_below(verdict: str) -> None:
    marked = printed(lambda console: print_points([observed(verdict, "because")], console))
    assert f"8 2 100.0 10.00 10.00 0 — {verdict}" in " ".join(marked.split())
    assert f"8×2  {verdict}: because" in marked
    clean = printed(lambda console: print_points([observed(CLEAN)], console))
    assert verdict not in clean and CLEAN in clean


def test_points_refused_for_one_reason_are_named_together() -> None:
    refused = [Point(batch, 1, refusal="out of memory") for batch in (32, 64)]
    assert remarks(refused) == ["32×1 64×1  refused: out of memory"]


def test_busy_neighbours_are_mentioned() -> None:
    busy = Point(1, 1, rounds=(Round(1.0, (1.0,), foreign_cores=1.5),), observed=Observed(CLEAN))
    assert "other processes kept 1.5 cores busy" in remarks([busy])[0]
    assert remarks([observed(CLEAN)]) == []
