"""The main job on the small trained ViT: in order, resumable, and never trusting a step it could not check."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import vitesse
from vitesse import pipeline, stages
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.assess import Assessor, Step
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault, with_nan
from vitesse.backends.fake import scaled as scaled_outputs
from vitesse.backends.protocol import Built
from vitesse.cli import main
from vitesse.errors import DataError, RunFolderError, UsageError
from vitesse.ledger import Verdict
from vitesse.predict import load
from vitesse.recipe import DataOptions, Int8Options, MeasureOptions, Recipe
from vitesse.run import Run, open_run
from vitesse.serve.releases.golden import COUNT, compare, load_golden, tolerances_of
from vitesse.verify.gate import StepKind

pytestmark = pytest.mark.usefixtures("short_races")
EXAMPLES = Path(__file__).parents[1] / "examples" / "fashion"
MODEL, IMAGES = EXAMPLES / "vit_fashion.onnx", EXAMPLES / "vit"
QUICK = Recipe(
    target="onnxruntime",
    precisions=("fp32",),
    data=DataOptions(limit=40, calib_images=8),
    measure=MeasureOptions(seconds=0.1, min_rounds=8, parity_images=4),
)
AS_TOML = """
target = "onnxruntime"
precisions = ["fp32"]
[data]
limit = 40
calib_images = 8
[measure]
seconds = 0.1
min_rounds = 8
parity_images = 4
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, short_races: None) -> Run:
    return pipeline.optimize(MODEL, data=IMAGES, out=tmp_path_factory.mktemp("runs") / "run", recipe=QUICK)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A finished run of one's own, to change or go on with."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return open_run(tmp_path / "run")


def forget(run: Run, first: str) -> None:
    """Leave the folder of a run as it was before the step `first` began."""
    done = [row.stage for row in run.ledger.rows]
    for path in (run.folder / "steps").iterdir():
        if done.index(json.loads(path.read_text())["stage"]) >= done.index(first):
            path.unlink()


def test_the_stages_come_in_order_and_every_row_is_whole(finished: Run) -> None:
    rows = finished.ledger.rows
    assert [row.stage for row in rows[:3]] == ["source", "clean", "fuse"]
    assert rows[0].verdict is Verdict.PASS
    for row in rows:
        assert row.reason
        assert row.artifact is not None
        assert (finished.folder / row.artifact.path).is_file()
        assert row.accuracy is not None
        assert row.accuracy.images == 40
        assert row.latency_ms is not None
        assert row.latency_ms.p50 <= row.latency_ms.p90 <= row.latency_ms.p99
        assert row.gain is not None
        assert row.gain > 0
        assert row.memory_mb is not None
        assert row.memory_mb > 20
    assert rows[2].changes["attention"] == 6
    assert rows[2].parity is not None
    assert rows[2].parity.max_abs < 1e-3


def test_the_chosen_artifact_is_the_file_that_was_verified(finished: Run) -> None:
    assert finished.verified
    finished.artifact.check()
    with load(finished) as model:
        result = model(IMAGES / "val/9_Ankle-boot/00000.png")
    assert isinstance(result, vitesse.Classification)
    assert result.names[0] == "Ankle boot"
    assert len(result.labels) == 10


def test_every_kind_of_image_gives_the_same_answer(finished: Run) -> None:
    from PIL import Image

    path = IMAGES / "val/1_Trouser/00002.png"
    image = Image.open(path).convert("RGB")
    with load(finished) as model:
        results = model([path, str(path), path.read_bytes(), image, np.asarray(image)])
    assert {result.names[0] for result in results} == {"Trouser"}
    assert np.ptp([float(result.scores[0]) for result in results]) == 0


def test_the_report_lies_beside_the_ledger(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text()
    assert "fuse" in page
    assert (finished.folder / "report.md").is_file()
    assert json.loads((finished.folder / "report-data.json").read_text())["pictures"]
    assert (finished.folder / "samples" / "fuse.json").is_file()


def test_the_original_s_answers_to_some_images_are_kept_for_other_machines(finished: Run) -> None:
    golden = load_golden(finished.folder)
    assert golden is not None
    assert golden.kind == "validation" and len(golden.images) == COUNT
    assert golden.source_sha256 == finished.ledger.rows[0].artifact.sha256  # type: ignore[union-attr]
    fitting = tolerances_of(finished.ledger.chosen_row(), finished.ledger)
    assert compare(golden.outputs, golden, fitting) == ()
    wrong = [{name: -array for name, array in one.items()} for one in golden.outputs]
    assert compare(wrong, golden, fitting)


def test_a_second_call_takes_every_finished_step_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Assessor, step: object) -> None:
        raise AssertionError(f"measured again: {step}")

    monkeypatch.setattr(Assessor, "assess", never)
    again = pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=QUICK)
    assert again.ledger.rows == run.ledger.rows


def test_an_interrupted_run_goes_on_behind_the_last_finished_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    assess = Assessor.assess

    def interrupted(self: Assessor, step: object) -> object:
        measured.append(step.stage)  # type: ignore[attr-defined]
        if measured == ["source", "clean"]:
            raise KeyboardInterrupt
        return assess(self, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Assessor, "assess", interrupted)
    arguments = {"data": IMAGES, "out": tmp_path / "run", "recipe": QUICK}
    with pytest.raises(KeyboardInterrupt):
        pipeline.optimize(MODEL, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RunFolderError, match="has not chosen an artifact yet"):
        open_run(tmp_path / "run").ledger.chosen_row()
    done = pipeline.optimize(MODEL, **arguments)  # type: ignore[arg-type]
    assert measured[2:4] == ["clean", "fuse"], "the source was not measured again"
    assert done.ledger.chosen is not None


def test_a_step_whose_file_was_changed_is_made_again(run: Run) -> None:
    ref = run.ledger.rows[1].artifact
    assert ref is not None
    (run.folder / ref.path).write_bytes(b"damaged")
    again = pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=QUICK)
    assert again.ledger.rows[1].artifact == ref
    assert again.ledger.rows[1].seconds != run.ledger.rows[1].seconds


def test_a_changed_artifact_is_not_loaded(run: Run) -> None:
    ref = run.ledger.chosen_row().artifact
    assert ref is not None
    path = run.folder / ref.path
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RunFolderError, match="the file was changed after it had been verified"):
        load(run.folder)


def scaled(factor: float) -> object:
    """A broken stage: a fusion that multiplies the head's weights."""

    def broken(artifact: Artifact, store: Store) -> Built:
        model = onnx.load(artifact.path)
        head = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name)
        )
        made = store.put(model.SerializeToString(), artifact.spec, Provenance("fuse"), suffix=".onnx")
        return Built(made)

    return broken


@pytest.mark.parametrize(("factor", "text"), [(1.05, "differ from the model before"), (np.nan, "holds NaN")])
def test_a_stage_that_breaks_the_model_stops_the_run_and_nothing_is_chosen(
    run: Run, monkeypatch: pytest.MonkeyPatch, factor: float, text: str
) -> None:
    forget(run, "fuse")
    monkeypatch.setitem(pipeline.STRUCTURAL_STAGES, "fuse", (StepKind.STRUCTURAL, scaled(factor)))
    done = pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=QUICK)
    last = done.ledger.rows[-1]
    assert (last.stage, last.verdict) == ("fuse", Verdict.FAIL)
    assert text in last.reason
    assert done.ledger.chosen is None
    assert not done.verified
    if factor == 1.05:
        assert "first diverging" in last.reason


def test_a_runtime_that_refuses_ends_its_branch_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitesse.backends.onnxruntime import OnnxRuntimeBackend
    from vitesse.errors import BackendError

    def refuse(self: OnnxRuntimeBackend, artifact: Artifact, store: Store) -> Built:
        raise BackendError("operator Attention is not supported")

    forget(run, "build:onnxruntime")
    monkeypatch.setattr(OnnxRuntimeBackend, "build", refuse)
    done = pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=QUICK)
    assert (done.ledger.rows[-1].verdict, done.ledger.rows[-1].reason) == (
        Verdict.FAIL,
        "operator Attention is not supported",
    )
    assert done.verified
    assert done.ledger.chosen in (0, 1, 2)


@pytest.mark.parametrize(
    ("fault", "verdict", "text"),
    [
        (Fault(change=scaled_outputs(1.2)), Verdict.FAIL, "differ from the model before"),
        (Fault(change=with_nan), Verdict.FAIL, "holds NaN"),
        (Fault(delay_ms=50), Verdict.REJECTED, "slower than the step before"),
        (Fault(crash="illegal instruction"), Verdict.FAIL, "illegal instruction"),
    ],
)
def test_a_runtime_that_errs_crashes_or_dawdles_is_never_chosen(
    run: Run, monkeypatch: pytest.MonkeyPatch, fault: Fault, verdict: Verdict, text: str
) -> None:
    pytest.importorskip("openvino", reason="needs a second runtime: pip install 'vitesse[openvino]'")

    def faulty(name: str) -> object:
        return FakeBackend(backend(name), fault) if name == "openvino" else backend(name)

    monkeypatch.setattr("vitesse.measure.backend", faulty)
    recipe = replace(QUICK, target="openvino")
    done = pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=recipe)
    row = done.ledger.rows[-1]
    assert (row.stage, row.verdict) == ("build:openvino", verdict)
    assert text in row.reason
    assert done.ledger.chosen != len(done.ledger.rows) - 1
    assert done.verified
    assert done.ledger.rows[:3] == run.ledger.rows[:3], "the steps before were taken over"


def test_another_target_goes_on_from_the_same_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    assess = Assessor.assess

    def watched(self: Assessor, step: Step) -> object:
        measured.append(step.stage)
        return assess(self, step)

    monkeypatch.setattr(Assessor, "assess", watched)
    pytest.importorskip("openvino", reason="needs a second runtime: pip install 'vitesse[openvino]'")
    pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=replace(QUICK, target="cpu"))
    assert measured == ["build:openvino"]


def test_another_spec_is_not_answered_with_the_old_figures(run: Run) -> None:
    """The same file fed in another way is another measurement."""
    artifact = stages.open_model(MODEL)
    darker = replace(artifact.spec, preprocessing=replace(artifact.spec.preprocessing, mean=(0.9, 0.9, 0.9)))
    fed_otherwise = replace(artifact, spec=darker)
    done = pipeline.optimize(fed_otherwise, data=IMAGES, out=run.folder, recipe=QUICK)
    before, after = run.ledger.rows[0].accuracy, done.ledger.rows[0].accuracy
    assert before is not None
    assert after is not None
    assert before.value != after.value


def test_without_an_image_to_calibrate_on_int8_is_unknown_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copyfile(IMAGES / "val/1_Trouser/00002.png", tmp_path / "images" / "only.png")
    recipe = replace(QUICK, precisions=("fp32", "int8"))
    done = pipeline.optimize(MODEL, data=tmp_path / "images", out=tmp_path / "run", recipe=recipe)
    row = next(row for row in done.ledger.rows if row.stage == "int8")
    assert row.verdict is Verdict.UNKNOWN
    assert "--calib-data" in row.reason
    assert done.ledger.rows[-1].stage == "build:onnxruntime"


def test_without_labels_agreement_is_measured_and_called_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, path in enumerate(sorted((IMAGES / "val").rglob("*.png"))[::25]):
        shutil.copyfile(path, tmp_path / "images" / f"{number}.png")
    done = pipeline.optimize(MODEL, data=tmp_path / "images", out=tmp_path / "run", recipe=QUICK)
    accuracies = [row.accuracy for row in done.ledger.rows]
    assert all(accuracy is not None and accuracy.metric == "agreement" for accuracy in accuracies)
    assert "agreement with the original" in done.ledger.rows[0].reason


def test_another_model_in_the_same_folder_is_refused_and_the_run_stays(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    model = onnx.load(MODEL)
    model.doc_string = "another"
    onnx.save(model, other)
    before = (run.folder / "ledger.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"holds a run of another model(.|\n)*--out"):
        pipeline.optimize(other, data=IMAGES, out=run.folder, recipe=QUICK)
    assert (run.folder / "ledger.json").read_bytes() == before


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty and is not a run"):
        pipeline.optimize(MODEL, data=IMAGES, out=tmp_path, recipe=QUICK)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_as_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        pipeline.optimize(MODEL, data=IMAGES, out=tmp_path / "run", recipe=QUICK)


def test_an_unknown_target_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown target 'gpu'"):
        vitesse.optimize(MODEL, data=IMAGES, out=tmp_path / "run", target="gpu")
    assert not (tmp_path / "run").exists()


def test_an_empty_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="data"):
        pipeline.optimize(MODEL, data=tmp_path / "data", out=tmp_path / "run", recipe=QUICK)


def test_a_missed_latency_budget_is_said_and_ends_with_code_1(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "quick.toml"
    recipe.write_text(AS_TOML)
    arguments = ["optimize", str(MODEL), "--data", str(IMAGES), "--out", str(run.folder)]
    arguments += ["--recipe", str(recipe)]
    assert main([*arguments, "--latency-budget", "0.001ms"]) == 1
    assert "not met" in " ".join(capsys.readouterr().out.split()), "the console wraps lines"
    budget = open_run(run.folder).ledger.latency_budget
    assert budget is not None
    assert budget["met"] is False
    assert main(["report", str(run.folder)]) == 0
    image = str(IMAGES / "val/1_Trouser/00002.png")
    drawn = tmp_path / "drawn.png"
    capsys.readouterr()
    assert main(["predict", str(run.folder), image, "--draw", str(drawn), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["label"] == "Trouser"
    assert drawn.stat().st_size > 100


def test_a_full_disk_is_named_and_finished_steps_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from vitesse.errors import StorageError

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted((run.folder / "steps").iterdir())
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        pipeline.optimize(MODEL, data=IMAGES, out=run.folder, recipe=QUICK)
    assert sorted((run.folder / "steps").iterdir()) == before


def test_stages_are_callable_alone_beside_the_model(tmp_path: Path) -> None:
    shutil.copyfile(MODEL, tmp_path / "model.onnx")
    cleaned = vitesse.clean(vitesse.open_model(tmp_path / "model.onnx"))
    fused = vitesse.fuse(cleaned.artifact)
    assert fused.changes["gelu"] == 6
    assert fused.artifact.path.parent == tmp_path
    assert len(onnx.load(fused.artifact.path).graph.node) < len(onnx.load(cleaned.artifact.path).graph.node)
    quantised = vitesse.quantize(
        fused.artifact, IMAGES, options=Int8Options(method="minmax"), keep=["blocks.5.mlp"]
    )
    assert quantised.changes["Linear to INT8"] == 34, "all of six blocks but the last one's MLP"
    with pytest.raises(UsageError, match=r"no block 'blocks.9' to keep(.|\n)*blocks.0.attention"):
        vitesse.quantize(fused.artifact, IMAGES, keep=["blocks.9"])
    assert stages.build(fused.artifact).artifact.backend == "onnxruntime"
