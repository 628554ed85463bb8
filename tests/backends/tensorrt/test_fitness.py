"""Plans that run here, that do not, and of which that cannot be told: each with its reason and next step."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from backends.cuda.fake_driver import H100
from backends.tensorrt.fake_api import EngineValidity, World, fake_api
from backends.tensorrt.plans import RTX_4090, doubling, kept_plan
from vitesse.artifact import Provenance, Store
from vitesse.backends.tensorrt.fitness import current_device, examine, fitness
from vitesse.backends.tensorrt.manifest import keep_plan, manifest_path
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan
from vitesse.backends.tensorrt.origin import built_from
from vitesse.backends.tensorrt.validity import diagnostics
from vitesse.errors import ModelError


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    assert made.deserialised == [], "judging must not deserialise"


def rtx(world: World, version: str = "1.7.1") -> Any:
    return fake_api(world, "rtx", version=version, name="tensorrt_rtx")


def rtx_plan(folder: Path, **changes: Any) -> Path:
    given = {"capabilities": ("sm86", "sm89"), "device": None, **changes}
    return kept_plan(folder, module="tensorrt_rtx", version="1.7.1", **given).path


def test_a_plan_built_here_runs_here(world: World, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    judged = fitness(plan, api=fake_api(world), device=H100)
    assert (judged.verdict, judged.reasons, judged.fix) == ("runs", (), "")
    assert judged.usable


def test_the_bytes_that_were_judged_are_handed_out_only_when_they_may_be_used(
    world: World, tmp_path: Path
) -> None:
    plan = kept_plan(tmp_path).path
    judged, manifest, content = examine(plan, api=fake_api(world), device=H100)
    assert judged.usable and manifest is not None and content == plan.read_bytes()
    for device in (None, RTX_4090):
        judged, _, content = examine(plan, api=fake_api(world), device=device)
        assert not judged.usable and content == b""


def test_without_a_gpu_the_answer_is_unknown_and_never_runs(world: World, tmp_path: Path) -> None:
    judged = fitness(kept_plan(tmp_path).path, api=fake_api(world), device=None)
    assert judged.verdict == "unknown" and not judged.usable
    assert judged.reasons == ("there is no GPU here to run it on",)
    assert "on the machine that will run it" in judged.fix


def test_a_plan_without_a_manifest_is_refused(world: World, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    manifest_path(plan).unlink()
    judged = fitness(plan, api=fake_api(world), device=H100)
    assert judged.verdict == "refused"
    assert "has no manifest" in judged.reasons[0]
    assert "vitesse build" in judged.fix


def test_a_plan_that_is_gone_is_refused(world: World, tmp_path: Path) -> None:
    judged = fitness(tmp_path / "gone.plan", api=fake_api(world), device=H100)
    assert judged.verdict == "refused"
    assert "gone.plan cannot be read: No such file" in judged.reasons[0]


def test_bytes_that_were_changed_anywhere_or_cut_off_are_refused_by_their_hash(
    world: World, tmp_path: Path
) -> None:
    plan = kept_plan(tmp_path).path
    good = plan.read_bytes()
    draw = random.Random(0)
    broken = [b"", good + b"\0", *(good[: draw.randrange(len(good))] for _ in range(20))]
    for _ in range(60):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        broken.append(bytes(flipped))
    for content in broken:
        plan.write_bytes(content)
        judged, _, handed_out = examine(plan, api=fake_api(world), device=H100)
        assert judged.verdict == "refused" and handed_out == b""
        assert "damaged, cut off or swapped" in judged.reasons[0]
        assert judged.fix.startswith("copy it again with its manifest, or build it again: vitesse build run/")
    plan.write_bytes(good)
    assert fitness(plan, api=fake_api(world), device=H100).verdict == "runs"


def test_a_manifest_with_any_byte_changed_never_raises(world: World, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    good = manifest_path(plan).read_bytes()
    draw = random.Random(1)
    verdicts = set()
    for _ in range(150):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        manifest_path(plan).write_bytes(bytes(flipped))
        verdicts.add(fitness(plan, api=fake_api(world), device=H100).verdict)
    assert "refused" in verdicts


def test_a_plan_must_also_be_the_file_that_the_ledger_names(world: World, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path)
    same, _, _ = examine(plan.path, api=fake_api(world), device=H100, sha256=plan.sha256)
    assert same.usable
    other, _, _ = examine(plan.path, api=fake_api(world), device=H100, sha256="0" * 64)
    assert other.verdict == "refused"
    assert "the run's ledger says 000000000000…" in other.reasons[0]


def test_a_manifest_without_a_hash_is_no_proof(world: World, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    raw = json.loads(manifest_path(plan).read_text())
    manifest_path(plan).write_text(json.dumps({**raw, "plan_sha256": ""}))
    judged = fitness(plan, api=fake_api(world), device=H100)
    assert judged.verdict == "refused"
    assert judged.reasons == ("its manifest holds no sha256 of the plan",)


def test_another_version_is_refused_with_the_line_that_installs_the_right_one(
    world: World, tmp_path: Path
) -> None:
    judged = fitness(kept_plan(tmp_path).path, api=fake_api(world, version="10.14.1"), device=H100)
    assert judged.verdict == "refused"
    assert judged.reasons == ("it was built by tensorrt 10.13.0, here is 10.14.1",)
    assert judged.fix.startswith("pip install tensorrt==10.13.0, or build it again: vitesse build run/")


@pytest.mark.parametrize(
    ("here", "verdict"), [("10.14.1", "suboptimal"), ("10.12.0", "refused"), ("11.0.0", "refused")]
)
def test_a_version_compatible_plan_runs_on_later_versions_of_its_major_release(
    world: World, tmp_path: Path, here: str, verdict: str
) -> None:
    plan = kept_plan(tmp_path, version_compatible=True).path
    judged = fitness(plan, api=fake_api(world, version=here), device=H100)
    assert judged.verdict == verdict
    assert f"it was built by tensorrt 10.13.0, here is {here}" in judged.reasons[0]


def test_a_missing_library_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = kept_plan(tmp_path).path
    monkeypatch.setattr("vitesse.backends.tensorrt.api.find_spec", lambda name: None)
    judged = fitness(plan, device=H100)
    assert judged.verdict == "refused"
    assert judged.reasons == ("tensorrt is not installed",)
    assert judged.fix.startswith("pip install")


def test_a_plan_of_the_other_library_is_refused(world: World, tmp_path: Path) -> None:
    judged = fitness(rtx_plan(tmp_path), api=fake_api(world), device=RTX_4090)
    assert judged.verdict == "refused"
    assert judged.reasons[0] == "it was built by tensorrt_rtx, and tensorrt cannot read that"


def test_a_plan_for_another_gpu_says_for_which_and_how_to_build_for_this_one(
    world: World, tmp_path: Path
) -> None:
    judged = fitness(kept_plan(tmp_path).path, api=fake_api(world), device=RTX_4090)
    assert judged.verdict == "refused"
    assert judged.reasons == ("it was built for sm90, this is NVIDIA GeForce RTX 4090, sm89",)
    assert judged.fix == "for sm89, build it again: vitesse build run/ --target tensorrt"


def test_another_gpu_of_the_same_capability_is_suboptimal_for_enterprise_tensorrt(
    world: World, tmp_path: Path
) -> None:
    h200 = replace(H100, name="NVIDIA H200")
    judged = fitness(kept_plan(tmp_path).path, api=fake_api(world), device=h200)
    assert judged.verdict == "suboptimal" and judged.usable
    assert judged.reasons == (
        "its kernels were timed on Fake H100, this is NVIDIA H200: others may be faster",
    )


def test_an_older_driver_than_that_of_the_build_is_refused(world: World, tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    judged = fitness(plan, api=fake_api(world), device=replace(H100, driver_version=(12, 8)))
    assert judged.verdict == "refused"
    assert judged.reasons == ("the driver here is for CUDA 12.8, that of the build for CUDA 13.0",)
    assert judged.fix.startswith("update the NVIDIA driver, or build it again")
    newer = replace(H100, driver_version=(13, 1))
    assert fitness(plan, api=fake_api(world), device=newer).verdict == "runs"


def test_a_plan_larger_than_the_gpus_memory_is_refused(world: World, tmp_path: Path) -> None:
    tiny = replace(H100, memory_bytes=100)
    judged = fitness(kept_plan(tmp_path).path, api=fake_api(world), device=tiny)
    assert judged.verdict == "refused"
    assert "GiB of memory" in judged.reasons[0]


def test_a_plan_that_does_not_say_for_which_gpu_it_is_stays_unknown(world: World, tmp_path: Path) -> None:
    judged = fitness(kept_plan(tmp_path, device=None).path, api=fake_api(world), device=H100)
    assert judged.verdict == "unknown"
    assert judged.reasons == ("its manifest does not say for which compute capability it was built",)


def test_rtx_runs_a_plan_built_elsewhere_for_this_capability(world: World, tmp_path: Path) -> None:
    judged = fitness(rtx_plan(tmp_path), api=rtx(world), device=RTX_4090)
    assert judged.verdict == "runs"


def test_rtx_says_that_it_does_not_support_an_h100(world: World, tmp_path: Path) -> None:
    judged = fitness(rtx_plan(tmp_path), api=rtx(world), device=H100)
    assert judged.verdict == "refused"
    assert judged.reasons[0].startswith(
        "compute capability 9.0 (Fake H100) is not supported by tensorrt_rtx 1.7.1"
    )
    assert "sm75, sm80, sm86, sm89, sm120" in judged.reasons[0]
    assert judged.fix == "build for --target tensorrt or --target cuda on this GPU"


@pytest.mark.parametrize(
    ("answer", "bits", "verdict", "said"),
    [
        (EngineValidity.INVALID, 1, "refused", "another version of the library built it"),
        (
            EngineValidity.INVALID,
            4 + 16,
            "refused",
            "driver is too old for it, the GPU has too little memory",
        ),
        (EngineValidity.INVALID, 0, "refused", "it gives no reason"),
        (EngineValidity.SUBOPTIMAL, 0, "suboptimal", "calls the plan suboptimal here"),
    ],
)
def test_what_rtx_itself_says_counts(
    world: World, tmp_path: Path, answer: EngineValidity, bits: int, verdict: str, said: str
) -> None:
    world.validity = (answer, bits)
    judged = fitness(rtx_plan(tmp_path), api=rtx(world), device=RTX_4090)
    assert judged.verdict == verdict
    assert said in judged.reasons[0]


def test_every_diagnostic_has_its_words_and_an_unknown_bit_is_not_lost(world: World) -> None:
    assert len(diagnostics(rtx(world), 127)) == 7
    assert diagnostics(rtx(world), 2) == ("it was not built for this compute capability",)
    assert diagnostics(rtx(world), 32 + 256) == ("its content is damaged", "diagnostic 256")
    assert diagnostics(rtx(world), 0) == ()


def test_the_absence_of_a_gpu_or_of_its_packages_is_a_reason_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vitesse.backends.cuda.bindings", None)
    device, why = current_device()
    assert device is None
    assert "pip install 'vitesse[gpu]'" in why


def test_a_plan_is_told_from_the_model_it_was_built_from(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    same = built_from(plan, tmp_path / "model.onnx")
    assert same.same and same.reason == "the same file"


def test_the_same_weights_in_another_graph_are_told_apart_from_other_weights(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    model = onnx.load(doubling(tmp_path).path)
    model.graph.node[0].name = "renamed"
    onnx.save(model, tmp_path / "other.onnx")
    renamed = built_from(plan, tmp_path / "other.onnx")
    assert not renamed.same
    assert renamed.reason == "the weights are the same, the graph around them is another"
    model.graph.initializer[0].float_data[0] = 3.0
    onnx.save(model, tmp_path / "other.onnx")
    tripled = built_from(plan, tmp_path / "other.onnx")
    assert not tripled.same and tripled.reason == "the weights are others"
    assert tripled.fix.startswith("build it again")


def test_a_plan_of_a_rewritten_graph_knows_the_file_it_was_rewritten_from(tmp_path: Path) -> None:
    original = doubling(tmp_path)
    (tmp_path / "rewritten").mkdir()
    provenance = Provenance("lower:tensorrt", original.sha256)
    rewritten = replace(doubling(tmp_path / "rewritten"), sha256="7" * 64, provenance=provenance)
    built = BuiltPlan(b"fake", "10.13.0", "fp16", 0.5, ())
    plan = keep_plan(built, rewritten, BuildOptions(), module="tensorrt", store=Store(tmp_path)).path
    found = built_from(plan, original.path)
    assert found.same and found.reason == "the same file, rewritten for tensorrt before it was built"
    model = onnx.load(original.path)
    model.producer_name = "another"
    onnx.save(model, original.path.with_name("again.onnx"))
    other = built_from(plan, original.path.with_name("again.onnx"))
    assert not other.same


def test_a_file_that_is_no_model_cannot_be_compared(tmp_path: Path) -> None:
    plan = kept_plan(tmp_path).path
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(ModelError, match=r"cannot read .*noise\.onnx"):
        built_from(plan, tmp_path / "noise.onnx")
