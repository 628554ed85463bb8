"""The whole path on the CPU, where plans run plain functions: built, kept, loaded, run, refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from backends.torch_cuda.fake_kernels import FakeKernel, kernels_of
from backends.torch_cuda.graphs import TOKENS, WIDTH, block
from tiny_onnx import FEATURES, as_artifact, linear, linear_in_numpy, unknown_operator
from vitesse.artifact import Artifact, Store
from vitesse.backends import TARGETS, home_of
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.tensorrt.profiles import parse_shapes
from vitesse.backends.torch_cuda import backend as backend_module
from vitesse.backends.torch_cuda import engine as engine_module
from vitesse.backends.torch_cuda import session as session_module
from vitesse.backends.torch_cuda.archive import pack, unpack
from vitesse.backends.torch_cuda.backend import TorchCudaBackend
from vitesse.backends.torch_cuda.building import BuildOptions, shapes_for
from vitesse.backends.torch_cuda.candidates import Kernels
from vitesse.backends.torch_cuda.device import differences
from vitesse.backends.torch_cuda.plan import Plan
from vitesse.errors import BackendError, DataError, UsageError

SMALL = BuildOptions(batch=(1, 2, 4), command="vitesse build model.onnx --target torch-cuda --batch 1,2,4")


def saved(folder: Path, model: onnx.ModelProto) -> Artifact:
    path = folder / "block.onnx"
    path.write_bytes(model.SerializeToString())
    return as_artifact(path)


def on_cpu(*fakes: FakeKernel) -> TorchCudaBackend:
    return TorchCudaBackend("cpu", kernels_of(*fakes) if fakes else None)


def batch(size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((size, FEATURES)).astype(np.float32)


def test_the_cpu_is_never_offered_and_a_machine_without_a_gpu_says_why(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = TorchCudaBackend("cpu").probe()
    assert not found.available
    assert found.reason
    assert found.fix
    with pytest.raises(BackendError, match="cannot run on torch-cuda"):
        TorchCudaBackend().load(linear(tmp_path))


def test_a_gpu_that_is_too_old_is_refused_with_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce GTX 1080")
    found = TorchCudaBackend().probe()
    assert found.reason == "compute capability 6.1 (NVIDIA GeForce GTX 1080), 7.0 is needed"


def test_the_target_has_itself_as_its_home() -> None:
    assert TARGETS["torch-cuda"] == ("torch-cuda",)
    assert home_of("torch-cuda") == "torch-cuda"
    assert home_of("tensorrt") == "cuda"


def test_an_engine_is_built_kept_loaded_and_right(tmp_path: Path) -> None:
    backend = on_cpu(FakeKernel("fake"), FakeKernel("wrong", scale=2.0))
    built = backend.build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    built.artifact.check()
    assert built.artifact.path.name.startswith("torch-cuda-sm00-fp32-")
    assert built.changes["by fake"] == 1
    assert any(note.startswith("wrong dropped for 3 sizes: output 0 is off") for note in built.notes)
    assert "3 different steps: 0 s of compiling and checking candidates, 0 s of measuring" in built.notes
    manifest = unpack(built.artifact.path).manifest
    assert manifest.shapes == ({"x": (1, 6)}, {"x": (2, 6)}, {"x": (4, 6)})
    assert manifest.command == SMALL.command
    with backend.load(built.artifact) as engine, engine.session() as session:
        for size in (1, 4, 2, 4):
            outputs = session.run({"x": batch(size)}).outputs
            np.testing.assert_allclose(
                outputs["logits"], linear_in_numpy(batch(size))["logits"], rtol=1e-5, atol=1e-6
            )
        assert engine.notes == []
        assert [row.tactic for row in engine.plan({"x": (4, 6)}).describe()].count("fake") == 1


def test_loading_measures_nothing_and_a_shape_without_a_plan_is_remarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = on_cpu(FakeKernel("fake"))
    built = backend.build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    monkeypatch.setattr(
        "vitesse.backends.torch_cuda.tactics.microseconds", lambda *_: pytest.fail("measured")
    )
    with backend.load(built.artifact) as engine, engine.session() as session:
        session.run({"x": batch(4)})
        assert engine.notes == []
        session.run({"x": batch(3)})
        (note,) = engine.notes
        assert note.startswith("x=3x6 was not planned for: 1 of ")
        assert note.endswith(f"plan it: {SMALL.command}")


def test_a_step_that_nothing_but_plain_torch_computed_right_was_planned_for_all_the_same(
    tmp_path: Path,
) -> None:
    backend = on_cpu(FakeKernel("wrong", scale=2.0))
    built = backend.build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    with backend.load(built.artifact) as engine, engine.session() as session:
        session.run({"x": batch(4)})
        assert engine.notes == []
        assert engine.plan({"x": (4, 6)}).guessed == ()


def test_an_engine_of_another_machine_says_what_differs_and_still_computes_right(tmp_path: Path) -> None:
    good = on_cpu(FakeKernel("fake"))
    built = good.build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    archive = unpack(built.artifact.path)
    made_on = {**archive.manifest.made_on, "gpu": "NVIDIA H100", "torch": "2.0.0", "driver": "11.0"}
    moved = tmp_path / "moved.torchcuda"
    moved.write_bytes(pack(replace(archive, manifest=replace(archive.manifest, made_on=made_on))))
    # The kernel that was right there is wrong here: a tactic that is taken on trust would show.
    backend = on_cpu(FakeKernel("fake", scale=5.0))
    with backend.load(as_artifact(moved)) as engine, engine.session() as session:
        (note,) = engine.notes
        assert f"torch 2.0.0, here {torch.__version__}" in note
        assert "gpu NVIDIA H100, here CPU" in note
        assert "driver" not in note
        assert note.endswith(f"build it again: {SMALL.command}")
        logits = session.run({"x": batch(2)}).outputs["logits"]
    np.testing.assert_allclose(logits, linear_in_numpy(batch(2))["logits"], rtol=1e-5, atol=1e-6)


def test_differences_are_words() -> None:
    said = differences({"torch": "2.10", "gpu": "A100", "nvmath": "1.0"}, {"torch": "2.11", "gpu": "A100"})
    assert said == ("torch 2.10, here 2.11", "nvmath 1.0, here absent")


@pytest.mark.parametrize("options", [LoadOptions(plain=True), LoadOptions(reference=True)])
def test_plain_and_reference_run_operator_by_operator_without_a_plan(
    tmp_path: Path, options: LoadOptions
) -> None:
    with on_cpu().load(linear(tmp_path), options) as engine, engine.session() as session:
        logits = session.run({"x": batch(2)}).outputs["logits"]
        np.testing.assert_allclose(logits, linear_in_numpy(batch(2))["logits"], rtol=1e-5, atol=1e-6)
        with pytest.raises(BackendError, match="has no plan for"):
            engine.plan({"x": (2, FEATURES)})


def test_tensors_on_the_device_come_and_go_without_numpy(tmp_path: Path) -> None:
    class Dlpack:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: object) -> object:
            return self.tensor.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

    expected = linear_in_numpy(batch(2))["logits"]
    with on_cpu().load(linear(tmp_path)) as engine, engine.session() as session:
        for feed in (torch.from_numpy(batch(2)), Dlpack(torch.from_numpy(batch(2)))):
            logits = session.run_on_device({"x": feed})["logits"]
            torch.testing.assert_close(logits.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
        static = session.inputs_for({"x": (2, FEATURES)})["x"]
        static.copy_(torch.from_numpy(batch(2)))
        torch.testing.assert_close(session.run_on_device({"x": static})["logits"], logits)
        assert session.synchronize() == 0.0
        with pytest.raises(DataError, match="of type str is no tensor"):
            session.run_on_device({"x": "image"})
        with pytest.raises(DataError, match="is on meta"):
            session.run_on_device({"x": torch.empty(2, FEATURES, device="meta")})
        with pytest.raises(DataError, match="has dtype float64"):
            session.run_on_device({"x": torch.zeros(2, FEATURES, dtype=torch.float64)})


def test_many_shapes_keep_a_bounded_number_of_plans_and_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOST_PLANS", 3)
    monkeypatch.setattr(session_module, "MOST_SHAPES", 2)
    with on_cpu().load(linear(tmp_path)) as engine, engine.session() as session:
        for size in (1, 2, 3, 4, 5, 1):
            logits = session.run({"x": batch(size)}).outputs["logits"]
            np.testing.assert_allclose(logits, linear_in_numpy(batch(size))["logits"], rtol=1e-5, atol=1e-6)
        assert len(engine._programs) == 3
        assert len(session._ready) == 2


def test_sessions_share_a_plan(tmp_path: Path) -> None:
    with on_cpu().load(linear(tmp_path)) as engine, engine.session() as first, engine.session() as second:
        threads = [threading.Thread(target=one.run, args=({"x": batch(2)},)) for one in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(engine._programs) == 1
        assert isinstance(engine.plan({"x": (2, FEATURES)}), Plan)


def test_an_operator_that_torch_does_not_have_is_named_when_it_is_loaded_and_built(tmp_path: Path) -> None:
    for act in (
        on_cpu().load,
        lambda artifact: on_cpu().build_for(artifact, Store(tmp_path / "engines"), SMALL),
    ):
        with pytest.raises(BackendError) as caught:
            act(unknown_operator(tmp_path))
        assert "Frobnicate" in caught.value.what
        assert "/body/odd_one" in caught.value.what


def test_a_kernel_that_fails_while_running_is_an_error_with_the_file(tmp_path: Path) -> None:
    fake = FakeKernel("fake")
    backend = on_cpu(fake)
    with backend.load(linear(tmp_path)) as engine, engine.session() as session:
        session.run({"x": batch(1)})
        fake.crash = "an illegal memory access was encountered"
        with pytest.raises(BackendError) as caught:
            session.run({"x": batch(1)})
        assert "illegal memory access" in caught.value.what
        assert "linear.onnx" in caught.value.what
        fake.crash = ""
        assert session.run({"x": batch(1)}).outputs["total"].shape == (1,)


def test_profiles_batches_and_fixed_graphs_become_the_shapes_that_are_planned(tmp_path: Path) -> None:
    artifact = saved(tmp_path, block())
    fixed = saved(tmp_path, block(rows=3))
    profiles = parse_shapes("x=1x7x16..4x7x16")
    assert shapes_for(artifact, block(), BuildOptions(profiles)) == ({"x": (1, 7, 16)}, {"x": (4, 7, 16)})
    assert shapes_for(artifact, block(), BuildOptions(batch=(2, 2, 2))) == ({"x": (2, 7, 16)},)
    assert shapes_for(fixed, block(rows=3), BuildOptions()) == ({"x": (3, TOKENS, WIDTH)},)
    free = block()
    free.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    with pytest.raises(UsageError, match="more than the batch is free"):
        shapes_for(artifact, free, BuildOptions())


def test_batches_that_do_not_fit_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Plan.__init__

    def small(self: Plan, model: object, shapes: dict[str, tuple[int, ...]], *others: object) -> None:
        if shapes["x"][0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        real(self, model, shapes, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Plan, "__init__", small)
    built = on_cpu().build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    assert unpack(built.artifact.path).manifest.shapes == ({"x": (1, 6)}, {"x": (2, 6)})
    assert "x=4x6 is not planned: CUDA out of memory. Tried to allocate 9 GiB" in built.notes
    with pytest.raises(BackendError, match="fits in the GPU's memory"):
        on_cpu().build_for(linear(tmp_path), Store(tmp_path / "engines"), replace(SMALL, batch=(3, 3, 3)))


def test_tactics_that_cannot_be_read_are_an_error_with_the_way_out(tmp_path: Path) -> None:
    built = on_cpu().build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    broken = tmp_path / "broken.torchcuda"
    broken.write_bytes(pack(replace(unpack(built.artifact.path), tactics="{")))
    with pytest.raises(BackendError) as caught:
        on_cpu().load(as_artifact(broken))
    assert "cannot read the tactics" in caught.value.what
    assert caught.value.fix == SMALL.command


def test_kernels_that_cannot_be_put_back_cost_time_and_are_remarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = on_cpu().build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    with_kernels = tmp_path / "kernels.torchcuda"
    with_kernels.write_bytes(pack(replace(unpack(built.artifact.path), kernels={"ABCDEFGH/k.cubin": b"x"})))
    binaries = pytest.importorskip("vitesse.backends.torch_cuda.kernels.binaries", reason="needs triton")
    monkeypatch.setattr(binaries.knobs.cache, "dir", str(tmp_path / "file"))
    (tmp_path / "file").write_text("where a folder should be")
    with on_cpu().load(as_artifact(with_kernels)) as engine:
        assert engine.notes[0].startswith("kernels are compiled again")
    assert backend_module._merged({}) == []


def test_no_kernel_at_all_is_no_obstacle(tmp_path: Path) -> None:
    backend = TorchCudaBackend("cpu", Kernels({}, {"triton.linear": "ImportError: no triton"}))
    built = backend.build_for(linear(tmp_path), Store(tmp_path / "engines"), SMALL)
    assert "triton.linear: ImportError: no triton" in built.notes
