"""The main job for a GPU, walked on the CPU: a runtime that calls itself `cuda` computes with ONNX Runtime there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar, NoReturn

import numpy as np
import onnx
import pytest
from PIL import Image

from fashion import FOLDER, VIT
from fusing import graph
from vitesse import backends, pipeline
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.assess import Assessor, Step
from vitesse.backends.fake import FakeEngine, Fault
from vitesse.backends.onnxruntime import OnnxRuntimeBackend
from vitesse.backends.protocol import Array, Availability, Built, Engine, LoadOptions
from vitesse.benchmark.fresh_process import FreshProcess
from vitesse.cli import main
from vitesse.errors import BackendError, MissingExtra
from vitesse.ledger import Row, Verdict
from vitesse.metadata import read_spec, serialise
from vitesse.predict import load
from vitesse.recipe import DataOptions, HalfOptions, MeasureOptions, Recipe
from vitesse.run import Run, artifact_of
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

pytestmark = pytest.mark.usefixtures("short_races")
IMAGES = FOLDER / "vit"
PRECISIONS = ("fp32", "fp16")
RECIPE = Recipe(
    max_drop=20.0,  # on so few images
    data=DataOptions(limit=20, calib_images=4),
    half=HalfOptions(images=2),
    # FP16 is slower than FP32 on a CPU; of what is measured here only the order matters.
    measure=MeasureOptions(seconds=0.05, min_rounds=6, parity_images=2),
)
ORDER = ["source", "clean", "fuse", "fp16", "build:cuda", "fp16:cuda"]


class CudaOnCpu:
    """Calls itself `cuda`, builds the same graph under another hash, and computes on the CPU."""

    name = "cuda"
    distrusts: ClassVar[tuple[str, ...]] = ()
    found = Availability(True, "1.0", ("GPU: a CPU in disguise",), ("fp32", "fp16"))
    loaded: ClassVar[list[tuple[str, LoadOptions]]] = []

    def probe(self) -> Availability:
        return self.found

    def build(self, artifact: Artifact, store: Store) -> Built:
        model = onnx.load(artifact.path)
        model.doc_string = f"built for {self.name}"
        provenance = Provenance(f"build:{self.name}", artifact.sha256)
        content = serialise(model, artifact.spec)
        made = store.put(content, artifact.spec, provenance, backend=self.name, suffix=".onnx")
        return Built(made, {"kernels": 1})

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> Engine:
        self.loaded.append((artifact.sha256, options or LoadOptions()))
        return OnnxRuntimeBackend().load(replace(artifact, backend="onnxruntime"), options)


class WrongInHalf(CudaOnCpu):
    """Gives the logits of a built FP16 graph the other way round; everything else is right."""

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> Engine:
        right = super().load(artifact, options)
        model = onnx.load(artifact.path)
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        return FakeEngine(right, Fault(change=reversed_classes)) if half and model.doc_string else right


class WithoutGpu(CudaOnCpu):
    found = Availability(False, "1.0", reason="no GPU was found", fix="see nvidia-smi")


def reversed_classes(name: str, array: Array) -> Array:
    return array[..., ::-1]


def put(patch: pytest.MonkeyPatch, runtime: type[CudaOnCpu], name: str = "cuda") -> None:
    """Let the table name `runtime`, and measure as little as can be: no figure here says anything about a GPU."""
    module = ModuleType(f"stands_for_{name}")
    module.__dict__["Runtime"] = runtime
    patch.setitem(sys.modules, module.__name__, module)
    entry = backends.Entry(module.__name__, "Runtime", "onnxruntime", "pip install a-gpu")
    patch.setitem(backends.TABLE, name, entry)  # type: ignore[arg-type]
    left_out = FreshProcess(unmeasured="left out in this test")
    patch.setattr("vitesse.measure.fresh_process", lambda *given: left_out)
    patch.setattr("vitesse.measure.throughput", no_throughput)


def no_throughput(*given: object, **options: object) -> NoReturn:
    raise BackendError("left out in this test")


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


@dataclass(frozen=True)
class Walked:
    run: Run
    loaded: tuple[tuple[str, LoadOptions], ...]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch, short_races: None) -> Walked:
    put(patch, CudaOnCpu)
    CudaOnCpu.loaded.clear()
    out = tmp_path_factory.mktemp("gpu") / "run"
    run = pipeline.optimize(VIT, data=IMAGES, out=out, target="cuda", recipe=RECIPE)
    return Walked(run, tuple(CudaOnCpu.loaded))


def rows_of(run: Run) -> dict[str, Row]:
    return {row.stage: row for row in run.ledger.rows}


def test_the_steps_of_a_gpu_come_in_order_and_fp16_is_its_default(walked: Walked) -> None:
    assert [row.stage for row in walked.run.ledger.rows] == ORDER
    assert walked.run.ledger.target == "cuda"
    for row in walked.run.ledger.rows:
        assert row.verdict in (Verdict.PASS, Verdict.REJECTED), row.reason
        assert row.latency_ms is not None
        assert row.accuracy is not None


def test_portable_files_and_the_original_run_on_the_gpu_too(walked: Walked) -> None:
    rows = rows_of(walked.run)
    for row in rows.values():
        assert row.artifact is not None
        assert row.artifact.backend == "cuda"
    source = rows["source"].artifact
    assert source is not None
    assert (source.sha256, LoadOptions(plain=True)) in walked.loaded, "the baseline"
    assert (source.sha256, LoadOptions(reference=True)) in walked.loaded, "what numbers are held against"
    assert not any(options.emulate for _, options in walked.loaded), "a GPU computes FP16 itself"


def test_an_engine_reproduces_the_file_that_it_was_built_from(walked: Walked) -> None:
    rows = rows_of(walked.run)
    half, engine = rows["fp16"], rows["fp16:cuda"]
    assert half.parity is not None
    assert engine.parity is not None
    assert half.parity.max_abs > 0
    assert engine.parity.max_abs < half.parity.max_abs / 4, "not held against the original"
    assert half.artifact is not None
    reference = (half.artifact.sha256, LoadOptions(reference=True))
    assert reference in walked.loaded
    assert engine.changes == {"kernels": 1}


def test_numbers_are_compared_without_tf32_and_speed_is_taken_with_it(walked: Walked) -> None:
    fused = rows_of(walked.run)["fuse"].artifact
    assert fused is not None
    exact = {options.tf32 for sha256, options in walked.loaded if sha256 == fused.sha256}
    assert exact == {True, False}


def test_what_was_chosen_is_served_by_the_gpu(walked: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, CudaOnCpu)
    with load(walked.run) as model:
        assert model.artifact.backend == "cuda"
        assert model(IMAGES / "val/1_Trouser/00002.png") is not None


def test_a_build_that_gives_wrong_numbers_fails_and_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, WrongInHalf)
    run = pipeline.optimize(VIT, data=IMAGES, out=tmp_path / "run", target="cuda", recipe=RECIPE)
    rows = rows_of(run)
    assert list(rows) == ORDER
    assert rows["fp16:cuda"].verdict is Verdict.FAIL
    assert "the outputs differ from the model before" in rows["fp16:cuda"].reason
    assert rows["build:cuda"].verdict is not Verdict.FAIL, "the other branch goes on"
    assert run.ledger.chosen is not None, "a branch that fails does not stop the run"
    assert run.ledger.chosen_row().stage != "fp16:cuda"
    assert run.verified


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("cuda", PRECISIONS),
        ("tensorrt", PRECISIONS),
        ("onnxruntime", ("fp32", "int8")),
        ("cpu", ("fp32", "int8")),
    ],
)
def test_each_target_has_the_precisions_that_it_turns_into_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, wanted: tuple[str, ...]
) -> None:
    for name in ("cuda", "tensorrt"):
        put(monkeypatch, CudaOnCpu, name)

    class Begun(Exception):
        pass

    def take_in(model: object, recipe: Recipe, *rest: object) -> None:
        raise Begun(recipe.precisions)

    monkeypatch.setattr(pipeline, "take_in", take_in)
    for asked, expected in ((RECIPE, wanted), (replace(RECIPE, precisions=("fp32",)), ("fp32",))):
        with pytest.raises(Begun) as begun:
            pipeline.optimize(VIT, data=IMAGES, out=tmp_path / "run", target=target, recipe=asked)
        assert begun.value.args == (expected,)


@pytest.mark.parametrize(
    ("target", "absent"), [("cuda", "cuda"), ("tensorrt", "tensorrt"), ("tensorrt", "cuda")]
)
def test_without_the_gpu_nothing_is_begun_and_the_way_out_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    absent: str,
) -> None:
    """An engine of TensorRT is held against the original on the same GPU: it needs the CUDA provider, too."""
    for name in ("cuda", "tensorrt"):
        put(monkeypatch, WithoutGpu if name == absent else CudaOnCpu, name)
    out = tmp_path / "run"
    with pytest.raises(MissingExtra) as refused:
        pipeline.optimize(VIT, data=IMAGES, out=out, target=target, recipe=RECIPE)
    assert refused.value.what == f"the backend '{absent}' cannot run here: no GPU was found"
    assert refused.value.cause == "a run measures every step where it is to be used"
    assert refused.value.fix == "see nvidia-smi"
    assert main(["optimize", str(VIT), "--data", str(IMAGES), "--out", str(out), "--target", target]) == 3
    said = capsys.readouterr().err
    assert "no GPU was found" in said
    assert "see nvidia-smi" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_run_for_a_cpu_gives_no_row_to_a_run_for_a_gpu(
    walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, CudaOnCpu)
    measured: list[str] = []
    assess = Assessor.assess

    def watched(self: Assessor, step: Step) -> Row:
        measured.append(f"{step.stage} on {step.built.artifact.backend}")
        return assess(self, step)

    monkeypatch.setattr(Assessor, "assess", watched)
    recipe = replace(RECIPE, precisions=("fp32",))
    for target, runtime in (("onnxruntime", "onnxruntime"), ("cuda", "cuda")):
        measured.clear()
        run = pipeline.optimize(VIT, data=IMAGES, out=tmp_path / "run", target=target, recipe=recipe)
        stages = ["source", "clean", "fuse", f"build:{target}"]
        assert measured == [f"{stage} on {runtime}" for stage in stages]
    measured.clear()
    again = pipeline.optimize(VIT, data=IMAGES, out=tmp_path / "run", target="cuda", recipe=recipe)
    assert again.ledger.rows == run.ledger.rows
    assert measured == [], "the same target goes on from its own"


def any_size(path: Path) -> Path:
    """Says whether red, green or blue is brightest; takes images of any size."""
    rules = Preprocessing((256, 384), Resize.SHORTEST)
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, rules)
    weights = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32) / 50
    weights[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w) mean = GlobalAveragePool (a) y = Flatten (mean)"
    path.write_bytes(serialise(graph(body, "float[N,3,H,W] x", "float[N,3] y", w=weights), spec))
    return path


def coloured(folder: Path) -> Path:
    """Photographs, landscape and upright in turn."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    for index in range(12):
        height, width = ((200, 300), (300, 200))[index % 2]
        pixels = rng.integers(0, 120, (height, width, 3), np.uint8)
        pixels[..., rng.integers(3)] += 80
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def test_a_row_with_buckets_that_passed_comes_back_with_them_from_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, CudaOnCpu)
    assess = Assessor.assess

    def passed(self: Assessor, step: Step) -> Row:
        # How fast this machine is at present is no part of the question.
        return replace(assess(self, step), verdict=Verdict.PASS)

    monkeypatch.setattr(Assessor, "assess", passed)
    model, images = any_size(tmp_path / "open.onnx"), coloured(tmp_path / "photos")
    recipe = replace(RECIPE, precisions=("fp32",), buckets=2, max_drop=100.0)
    run = pipeline.optimize(model, data=images, out=tmp_path / "run", target="cuda", recipe=recipe)
    names = ["buckets:2@256x384", "buckets:2@192x288", "buckets:2@128x192"]
    assert [row.stage for row in run.ledger.rows] == ["source", "clean", "fuse", *names, "build:cuda"]
    source = read_spec(onnx.load(model))
    assert source is not None
    found = [artifact_of(run.folder, rows_of(run)[name], source) for name in names]
    assert [one.spec.preprocessing.buckets for one in found] == [
        ((256, 384), (384, 256)),
        ((192, 288), (288, 192)),
        ((128, 192), (192, 128)),
    ]
    assert [one.spec.preprocessing.size for one in found] == [(256, 384), (192, 288), (128, 192)]
    for one in found:
        assert read_spec(onnx.load(one.path)) == one.spec, "the file says the same as the ledger"
        assert one.backend == "cuda"
    again = pipeline.optimize(model, data=images, out=tmp_path / "run", target="cuda", recipe=recipe)
    assert again.ledger.rows == run.ledger.rows
    chosen = replace(run.ledger, chosen=[row.stage for row in run.ledger.rows].index(names[-1]))
    with load(Run(run.folder, chosen)) as served:
        assert served.artifact.spec == found[-1].spec
        assert len(served([images / "00.png", images / "01.png"])) == 2, "one bucket each"
