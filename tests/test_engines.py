"""Engines of a run: one for each GPU, none built twice, a failure leaves the others, and the one that fits is found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from onnx import TensorProto

from engine_runs import FP16, FP32, AnApi, FakeBuilds, a_run, attention, product
from tiny_onnx import as_artifact, linear
from vitesse import engines
from vitesse.artifact import Artifact
from vitesse.backends.cuda.driver import Device
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt import building
from vitesse.backends.tensorrt.fitness import Fitness
from vitesse.backends.tensorrt.manifest import read_manifest
from vitesse.backends.tensorrt.options import BuildOptions, Profile, ShapeRange
from vitesse.engines import EngineRow, Order, build_engines, build_file, engine_for, parse_target
from vitesse.errors import BackendError, UsageError
from vitesse.run import Run

GRAPHS = {"source": FP32, "fuse": FP32, "fp16": FP16}
RTX = "tensorrt-rtx"
GPU = Device(0, "A GPU", (8, 6), 2**33, (13, 0), (13, 0))


@dataclass
class Runtime:
    """Stands for a backend."""

    distrusts: tuple[str, ...] = ("grid_sample",)

    def build(self, artifact: Artifact, store: object) -> Built:
        if artifact.path.name.startswith("fuse"):
            raise BackendError("the runtime refuses it")
        return Built(artifact, {"rewritten": 3}, ("a note",))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> FakeBuilds:
    """Nothing is compiled, and no library or GPU is needed."""
    made = FakeBuilds()
    monkeypatch.setattr(building, "build_plan", made)
    monkeypatch.setattr(engines, "load_api", lambda _: AnApi())
    monkeypatch.setattr(engines, "backend", lambda _: Runtime())
    monkeypatch.setattr(engines, "current_device", lambda: (None, "there is no driver"))
    return made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return a_run(tmp_path / "run", GRAPHS)


def built(run: Run, *capabilities: str, target: str = RTX, **more: object) -> tuple[EngineRow, ...]:
    return build_engines(run, target, BuildOptions(compute_capabilities=capabilities), **more)  # type: ignore[arg-type]


# --- what is asked for


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensorrt", ("tensorrt", ())),
        ("tensorrt-rtx:sm75,SM86, sm120", (RTX, ("sm75", "sm86", "sm120"))),
        ("tensorrt-rtx:sm86,sm86", (RTX, ("sm86",))),
    ],
)
def test_a_target_names_its_gpus(text: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["tensorrt-rtx:", "tensorrt-rtx:8.6", "tensorrt-rtx:sm86,turing"])
def test_what_is_no_compute_capability_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is no compute capability") as refused:
        parse_target(text)
    assert "tensorrt-rtx:sm75,sm86" in refused.value.expected


@pytest.mark.parametrize("target", ["cpu", "openvino", "tensorflow"])
def test_targets_that_are_not_built_apart_are_refused(run: Run, target: str) -> None:
    with pytest.raises(UsageError, match=f"--target {target} is not built apart") as refused:
        built(run, target=target)
    assert "cuda, tensorrt, tensorrt-rtx" in refused.value.expected


def test_rtx_without_a_gpu_wants_to_know_for_which(run: Run, builds: FakeBuilds) -> None:
    with pytest.raises(UsageError, match="without a GPU: there is no driver") as refused:
        built(run)
    assert refused.value.fix == "--target tensorrt-rtx:sm86,sm89,sm120"


def test_rtx_builds_for_the_gpu_that_is_here(
    run: Run, builds: FakeBuilds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "current_device", lambda: (GPU, ""))
    (row,) = built(run)
    assert row.name == "tensorrt-rtx:sm86"
    assert builds.asked[0][1].compute_capabilities == ("sm86",)
    assert row.artifact is not None
    assert read_manifest(row.artifact.path).built_on.gpu == "A GPU"


# --- what is built


def test_every_gpu_gets_its_own_plan_with_manifest_and_record(run: Run, builds: FakeBuilds) -> None:
    rows = built(run, "sm86", "sm120", command="vitesse build this")
    assert [row.name for row in rows] == ["tensorrt-rtx:sm86", "tensorrt-rtx:sm120"]
    assert len({row.artifact.path for row in rows if row.artifact}) == 2
    for row in rows:
        assert row.artifact is not None
        assert row.artifact.path.parent == run.folder / "engines"
        assert row.artifact.backend == RTX
        assert (row.stage, row.precision, row.seconds, row.reused) == ("fp16", "fp16", 1.5, False)
        assert row.notes == ("a warning",)
        manifest = read_manifest(row.artifact.path)
        assert manifest.compute_capabilities == (row.capability,)
        assert manifest.command == "vitesse build this"
        assert manifest.plan_sha256 == row.artifact.sha256
    profile = Profile({"x": ShapeRange((1, 6), (1, 6), (8, 6))})
    assert [options.profiles for _, options in builds.asked] == [(profile,), (profile,)]
    assert all(
        options.timing_cache == run.folder / "engines/timing-tensorrt-rtx.cache"
        for _, options in builds.asked
    )


def test_batch_and_shapes_become_profiles(run: Run, builds: FakeBuilds) -> None:
    built(run, "sm86", batch=(2, 4, 16))
    built(run, "sm86", shapes="x=1x6..3x6;x=4x6")
    (_, by_batch), (_, by_shapes) = builds.asked
    assert by_batch.profiles == (Profile({"x": ShapeRange((2, 6), (4, 6), (16, 6))}),)
    assert len(by_shapes.profiles) == 2
    with pytest.raises(UsageError, match="cannot be read"):
        built(run, "sm86", shapes="x:1")


def test_turing_gets_another_graph_than_the_others(run: Run, builds: FakeBuilds) -> None:
    turing, ampere = built(run, "sm75", "sm86", stage="fuse")
    assert (turing.stage, ampere.stage) == ("fp16", "fuse")
    assert "fp16 in place of fuse" in turing.why
    assert [name.partition("-")[0] for name, _ in builds.asked] == ["fp16", "fuse"]


def test_a_gpu_without_a_graph_leaves_the_others_alone(tmp_path: Path, builds: FakeBuilds) -> None:
    turing, ampere = built(a_run(tmp_path, {"source": FP32}), "sm75", "sm86")
    assert turing.artifact is None
    assert "--precisions fp32,fp16" in turing.refusal
    assert ampere.artifact is not None


def test_what_the_library_refuses_for_one_gpu_leaves_the_others_alone(run: Run, builds: FakeBuilds) -> None:
    builds.refuses = ("sm89",)
    rows = built(run, "sm86", "sm89", "sm120")
    assert [row.artifact is None for row in rows] == [False, True, False]
    assert "no kernel for sm89" in rows[1].refusal
    assert "next step: another GPU" in rows[1].refusal


def test_attention_in_fp32_is_written_out_before_the_build(tmp_path: Path, builds: FakeBuilds) -> None:
    run = a_run(tmp_path, {"source": attention(TensorProto.FLOAT)})
    (row,) = built(run, "sm86", shapes="q=1x2x4x8,k=1x2x4x8,v=1x2x4x8")
    assert builds.asked[0][0].startswith("lower-tensorrt-rtx")
    assert row.changes == {"lowered:attention": 1}
    assert any("Attention in FP32" in note for note in row.notes)
    (again,) = built(run, "sm86", shapes="q=1x2x4x8,k=1x2x4x8,v=1x2x4x8")
    assert again.reused
    assert (again.changes, again.notes) == (row.changes, row.notes)


def test_an_onnx_runtime_target_keeps_what_the_runtime_made(run: Run, builds: FakeBuilds) -> None:
    (row,) = built(run, target="cuda")
    assert row.name == "cuda"
    assert (row.changes, row.notes) == ({"rewritten": 3}, ("a note",))
    assert row.artifact is not None
    (refused,) = built(run, target="cuda", stage="fuse")
    assert refused.artifact is None
    assert refused.refusal == "the runtime refuses it"
    assert builds.asked == []


def test_a_file_of_no_run_is_built_as_it_is(tmp_path: Path, builds: FakeBuilds) -> None:
    order = Order(RTX, BuildOptions(compute_capabilities=("sm75",)), tmp_path / "engines")
    (row,) = build_file(linear(tmp_path), order)
    assert row.artifact is not None, "the library decides, for there is no other graph"
    assert (row.stage, row.why) == ("", "")
    assert builds.asked[0][0] == "linear.onnx"


# --- what is there already


def test_a_finished_build_is_taken_over(run: Run, builds: FakeBuilds) -> None:
    (first,) = built(run, "sm86")
    (second,) = built(run, "sm86")
    assert len(builds.asked) == 1
    assert second.reused
    assert second.artifact is not None
    assert first.artifact is not None
    assert second.artifact.sha256 == first.artifact.sha256
    assert (second.precision, second.seconds, second.notes) == (first.precision, first.seconds, first.notes)


def test_another_build_is_not_mistaken_for_a_finished_one(
    run: Run, builds: FakeBuilds, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(run, "sm86")
    others: list[Mapping[str, object]] = [
        {"batch": (1, 1, 4)},
        {"shapes": "x=1x6..4x6"},
        {"stage": "fuse"},
        {"rebuild": True},
    ]
    for number, other in enumerate(others, 2):
        assert not built(run, "sm86", **other)[0].reused
        assert len(builds.asked) == number
    level = BuildOptions(compute_capabilities=("sm86",), level=5)
    assert not build_engines(run, RTX, level)[0].reused
    monkeypatch.setattr(engines, "load_api", lambda _: AnApi("2.0"))
    assert not built(run, "sm86")[0].reused


@pytest.mark.parametrize("damage", ["plan", "manifest", "record"])
def test_a_damaged_engine_is_built_again(run: Run, builds: FakeBuilds, damage: str) -> None:
    (row,) = built(run, "sm86")
    assert row.artifact is not None
    plan = row.artifact.path
    file = {"plan": plan, "manifest": plan.with_name(plan.name + ".json")}.get(
        damage, plan.with_name(plan.name + ".build.json")
    )
    file.write_bytes(file.read_bytes()[:-20])
    assert not built(run, "sm86")[0].reused


# --- which one fits


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fitness]:
    """Verdicts by compute capability; what is not listed runs."""
    verdicts: dict[str, Fitness] = {}

    def fitness(plan: Path, *, device: Device | None) -> Fitness:
        (capability,) = read_manifest(plan).compute_capabilities
        return verdicts.get(capability, Fitness("runs"))

    monkeypatch.setattr(engines, "fitness", fitness)
    return verdicts


def created(plan: Path, day: str) -> None:
    file = plan.with_name(plan.name + ".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"created": day}))


def test_the_newest_engine_that_fits_is_taken(
    run: Run, builds: FakeBuilds, judged: dict[str, Fitness]
) -> None:
    rows = built(run, "sm86", "sm89", "sm120")
    days = {"sm86": "2026-01-03", "sm89": "2026-01-01", "sm120": "2026-01-02"}
    plans = {row.capability: row.artifact.path for row in rows if row.artifact}
    for capability, plan in plans.items():
        created(plan, days[capability])
    assert engine_for(run, RTX).path == plans["sm86"]
    judged["sm86"] = Fitness("refused", ("another GPU",))
    assert engine_for(run, RTX).path == plans["sm120"]
    judged["sm120"] = Fitness("suboptimal", ("slow",))
    assert engine_for(run, RTX).path == plans["sm120"], "it runs"
    judged["sm120"] = Fitness("unknown", ("not asked",))
    found = engine_for(run, RTX)
    assert found.path == plans["sm89"], "unknown is never runs"
    assert (found.backend, found.spec) == (RTX, rows[1].artifact.spec if rows[1].artifact else None)
    found.check()


def test_only_engines_of_the_step_that_is_named_count(
    run: Run, builds: FakeBuilds, judged: dict[str, Fitness]
) -> None:
    (whole,) = built(run, "sm86", stage="fuse")
    built(run, "sm86")
    assert whole.artifact is not None
    assert engine_for(run, RTX, "fuse").path == whole.artifact.path
    with pytest.raises(BackendError, match="no tensorrt-rtx engine of the step int8") as refused:
        engine_for(run, RTX, "int8")
    assert refused.value.fix.endswith("--target tensorrt-rtx --stage int8")


def test_engines_that_do_not_fit_are_listed_with_the_command_that_builds_one(
    run: Run, builds: FakeBuilds, judged: dict[str, Fitness], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="none was built") as refused:
        engine_for(run, RTX)
    assert refused.value.fix == f"vitesse build {run.folder} --target tensorrt-rtx"
    (row,) = built(run, "sm89")
    assert row.artifact is not None
    judged["sm89"] = Fitness("refused", ("built for sm89", "too large"))
    monkeypatch.setattr(engines, "current_device", lambda: (GPU, ""))
    with pytest.raises(BackendError) as refused:
        engine_for(run, RTX)
    assert f"{row.artifact.path.name}: built for sm89; too large" in str(refused.value)
    assert refused.value.fix == f"vitesse build {run.folder} --target tensorrt-rtx:sm86"
    del judged["sm89"]
    assert engine_for(run, RTX).path == row.artifact.path
    with pytest.raises(BackendError, match="has no tensorrt engine that runs here"):
        engine_for(run, "tensorrt")
    with pytest.raises(UsageError, match="--target cuda has no engines"):
        engine_for(run, "cuda")


def test_without_a_gpu_no_engine_is_said_to_run(run: Run, builds: FakeBuilds) -> None:
    built(run, "sm86")
    with pytest.raises(BackendError, match="there is no GPU here"):
        engine_for(run, RTX)


def test_a_plan_whose_manifest_cannot_be_read_is_passed_over(
    run: Run, builds: FakeBuilds, judged: dict[str, Fitness]
) -> None:
    (row,) = built(run, "sm86")
    assert row.artifact is not None
    (run.folder / "engines" / "foreign.plan").write_bytes(b"vtrt")
    assert engine_for(run, RTX).path == row.artifact.path


# --- the library itself


def test_rtx_builds_a_run_for_every_gpu_here(run: Run) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    rows = built(run, "sm75", "sm86", "sm90", stage="fuse")
    assert [row.stage for row in rows] == ["fp16", "fuse", "fuse"]
    assert [row.artifact is None for row in rows] == [False, False, True]
    assert "cannot build for sm90" in rows[2].refusal
    for row in rows[:2]:
        assert row.artifact is not None
        assert row.artifact.path.read_bytes()[:4] == b"vtrt"
    assert [row.precision for row in rows[:2]] == ["fp16", "fp32"]
    assert [row.reused for row in built(run, "sm75", "sm86", stage="fuse")] == [True, True]


def test_rtx_refuses_an_fp32_product_for_turing(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    file = tmp_path / "product.onnx"
    file.write_bytes(product(TensorProto.FLOAT).SerializeToString())
    order = Order(RTX, BuildOptions(compute_capabilities=("sm75", "sm86")), tmp_path / "engines")
    turing, ampere = build_file(as_artifact(file), order)
    assert "Turing" in turing.refusal, "if this compiles, selection no longer has to know of it"
    assert ampere.artifact is not None
