"""The two backends: what they say of themselves, what they build and refuse to load; real TensorRT for RTX."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.cuda.fake_driver import H100
from backends.tensorrt.fake_api import World, fake_api
from backends.tensorrt.plans import RTX_4090, doubling, kept_plan
from vitesse.artifact import Artifact, Store
from vitesse.backends.cuda.driver import Device
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend
from vitesse.backends.tensorrt.engine import RefusedPlan
from vitesse.backends.tensorrt.fitness import current_device, fitness
from vitesse.backends.tensorrt.manifest import NO_GPU, manifest_path, read_manifest
from vitesse.errors import BackendError

BACKEND = "vitesse.backends.tensorrt.backend"
VIT = Path(__file__).parents[3] / "examples/fashion/vit_fashion.onnx"
NO_DRIVER = "CUDA says cudaErrorNoDevice"


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.driver.check_clean()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, world: World) -> Any:
    """Pretend that a fake module and a GPU are here."""

    def installed(kind: str = "new", device: Device | None = H100, version: str = "10.13.0") -> None:
        name = "tensorrt_rtx" if kind == "rtx" else "tensorrt"
        api = fake_api(world, kind, version=version, name=name)
        if device is not None:
            world.driver.device = device
        found = (device, "" if device else NO_DRIVER)
        monkeypatch.setattr(f"{BACKEND}.load_api", lambda module: api)
        monkeypatch.setattr(f"{BACKEND}.current_device", lambda number=0: found)
        monkeypatch.setattr(f"{BACKEND}._TensorRt._driver", lambda self, number: world.driver)

    return installed


def test_with_a_gpu_the_backend_is_available_with_what_the_gpu_multiplies(install: Any) -> None:
    install()
    found = TensorRtBackend().probe()
    assert (found.available, found.version, found.devices) == (True, "10.13.0", ("Fake H100",))
    assert found.precisions == ("fp32", "fp16", "int8", "bf16", "fp8")
    install(device=replace(H100, compute_capability=(7, 5)))
    assert TensorRtBackend().probe().precisions == ("fp32", "fp16", "int8")


def test_without_a_gpu_enterprise_tensorrt_can_do_nothing(install: Any) -> None:
    install(device=None)
    found = TensorRtBackend().probe()
    assert not found.available
    assert found.reason == f"cannot build or run: {NO_DRIVER}"


def test_without_a_gpu_rtx_can_build_for_other_machines(install: Any) -> None:
    install("rtx", device=None, version="1.7.1")
    found = TensorRtRtxBackend().probe()
    assert not found.available
    assert found.reason.startswith(
        "can build for other machines (sm75, sm80, sm86, sm89, sm120), cannot run: "
    )


def test_rtx_on_an_h100_says_that_it_does_not_run_there(install: Any) -> None:
    install("rtx", version="1.7.1")
    found = TensorRtRtxBackend().probe()
    assert not found.available
    assert "compute capability 9.0 (Fake H100) is not supported by TensorRT-RTX 1.7.1" in found.reason
    assert "--target cuda" in found.fix


def test_rtx_on_a_geforce_is_available(install: Any) -> None:
    install("rtx", device=RTX_4090, version="1.7.1")
    assert TensorRtRtxBackend().probe().available


def test_a_package_that_is_only_type_stubs_is_not_taken_for_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitesse.backends.tensorrt.api.find_spec", lambda name: object())
    monkeypatch.setattr("vitesse.backends.tensorrt.api.import_module", lambda name: object())
    found = TensorRtBackend().probe()
    assert not found.available
    assert found.reason == "only the type stubs of tensorrt are installed"
    assert found.fix.startswith("pip install")


def test_a_kept_plan_is_loaded_and_run(install: Any, world: World, tmp_path: Path) -> None:
    install()
    fed = np.ones((2, 3, 4, 4), np.float32)
    with TensorRtBackend().load(kept_plan(tmp_path)) as engine, engine.session() as session:
        assert np.array_equal(session.run({"images": fed}).outputs["doubled"], 2 * fed)
    del session


@pytest.mark.parametrize("device", [None, RTX_4090])
def test_a_plan_that_is_not_known_to_run_here_is_never_deserialised(
    install: Any, world: World, tmp_path: Path, device: Device | None
) -> None:
    install(device=device)
    with pytest.raises(RefusedPlan) as caught:
        TensorRtBackend().load(kept_plan(tmp_path))
    assert world.deserialised == []
    said = (
        "does not run here: it was built for sm90"
        if device
        else "cannot be told to run here: there is no GPU"
    )
    assert said in str(caught.value)


def test_damaged_and_foreign_plans_are_refused_before_the_library_sees_them(
    install: Any, world: World, tmp_path: Path
) -> None:
    install()
    plan = kept_plan(tmp_path)
    good = plan.path.read_bytes()
    draw = random.Random(3)
    for _ in range(40):
        broken = bytearray(good[: draw.randrange(1, len(good) + 1)])
        broken[draw.randrange(len(broken))] ^= 0xFF
        plan.path.write_bytes(bytes(broken))
        with pytest.raises(BackendError, match="damaged, cut off or swapped"):
            TensorRtBackend().load(plan)
    plan.path.write_bytes(good)
    manifest_path(plan.path).unlink()
    with pytest.raises(BackendError, match="has no manifest"):
        TensorRtBackend().load(plan)
    assert world.deserialised == []


def test_a_plan_and_manifest_that_were_swapped_together_are_refused_by_the_ledgers_hash(
    install: Any, world: World, tmp_path: Path
) -> None:
    install()
    plan = kept_plan(tmp_path)
    with pytest.raises(BackendError, match="the run's ledger says 111111111111"):
        TensorRtBackend().load(replace(plan, sha256="1" * 64))
    assert world.deserialised == []


def test_a_graph_is_no_engine_and_the_command_that_builds_one_is_named(install: Any, tmp_path: Path) -> None:
    install()
    with pytest.raises(BackendError, match=r"model\.onnx is no engine") as caught:
        TensorRtBackend().load(doubling(tmp_path))
    assert caught.value.fix.startswith("vitesse build ")
    assert caught.value.fix.endswith("model.onnx --target tensorrt")


def test_it_cannot_be_the_numerical_reference(install: Any, tmp_path: Path) -> None:
    install()
    with pytest.raises(BackendError, match="cannot switch its optimisations off"):
        TensorRtBackend().load(kept_plan(tmp_path), LoadOptions(reference=True))


def test_a_plan_of_another_gpu_is_built_again_when_that_is_asked_for(
    install: Any, world: World, tmp_path: Path
) -> None:
    install()
    stale = kept_plan(tmp_path, device=RTX_4090)
    fresh: list[Artifact] = []

    def build() -> Artifact:
        fresh.append(kept_plan(tmp_path))
        return fresh[-1]

    with TensorRtBackend().load_or_rebuild(stale, build=build) as engine:
        assert engine.manifest.compute_capabilities == ("sm90",)
    with TensorRtBackend().load_or_rebuild(fresh[0], build=build):
        assert len(fresh) == 1


def test_building_again_is_not_tried_where_it_would_not_help(install: Any, tmp_path: Path) -> None:
    install(device=None)

    def build() -> Artifact:
        raise AssertionError("there is no GPU to build for")

    with pytest.raises(RefusedPlan, match="there is no GPU"):
        TensorRtBackend().load_or_rebuild(kept_plan(tmp_path), build=build)


def test_enterprise_tensorrt_without_a_gpu_says_where_to_build(install: Any, tmp_path: Path) -> None:
    install(device=None)
    with pytest.raises(BackendError, match="builds for the GPU that is here, and there is none") as caught:
        TensorRtBackend().build(doubling(tmp_path), Store(tmp_path / "engines"))
    assert "tensorrt-rtx:sm86" in caught.value.fix


def test_the_modules_that_run_a_plan_need_no_cuda_and_no_packages_for_building() -> None:
    code = (
        "import sys\nfor name in ('cuda', 'onnx_ir', 'onnxscript', 'tensorrt', 'tensorrt_rtx', 'torch'):\n"
        "    sys.modules[name] = None\n"
        f"import {BACKEND}, vitesse.cli.check\nfrom vitesse.backends.tensorrt.fitness import current_device\n"
        "device, why = current_device()\nassert device is None and 'vitesse[gpu]' in why, why"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The real TensorRT for RTX, which builds without a GPU.


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx",
        reason="needs TensorRT for RTX: pip install 'vitesse[tensorrt-rtx]'",
        exc_type=ImportError,
    )


@pytest.fixture(scope="module")
def vit(rtx: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """vit_fashion, built by the backend as it builds where there is no GPU."""
    from vitesse.stages import open_model

    folder = tmp_path_factory.mktemp("vit")
    return TensorRtRtxBackend().build(open_model(VIT), Store(folder)).artifact


@pytest.fixture
def no_gpu() -> None:
    if current_device()[0] is not None:
        pytest.skip("there is a GPU here")


def test_a_real_plan_has_a_manifest_that_says_what_it_is(rtx: Any, vit: Artifact, no_gpu: None) -> None:
    found = read_manifest(vit.path)
    assert found.plan_bytes == vit.path.stat().st_size
    assert found.module == "tensorrt_rtx" and found.version == rtx.__version__
    assert found.compute_capabilities[0] == "sm80" and "sm75" not in found.compute_capabilities
    assert found.built_on.gpu == NO_GPU
    assert found.precision == "fp32"
    assert [span.max[0] for span in found.profiles[0].inputs.values()] == [8]
    assert vit.path.read_bytes()[:4] == b"vtrt"


def test_a_real_plan_is_unknown_without_a_gpu_and_refused_on_an_h100(vit: Artifact) -> None:
    assert fitness(vit.path, device=None).verdict == "unknown"
    judged = fitness(vit.path, device=H100)
    assert judged.verdict == "refused"
    assert "compute capability 9.0 (Fake H100) is not supported by tensorrt_rtx" in judged.reasons[0]


def test_real_rtx_is_asked_last_and_calls_a_plan_invalid_where_cuda_does_not_work(
    vit: Artifact, no_gpu: None
) -> None:
    judged = fitness(vit.path, device=RTX_4090)  # a GPU that the library will not find
    assert judged.verdict == "refused"
    assert "TensorRT-RTX calls the plan invalid here: " in judged.reasons[0]
    assert "it gives no reason" not in judged.reasons[0]


def test_a_real_plan_with_one_bit_flipped_never_reaches_the_library(vit: Artifact, tmp_path: Path) -> None:
    plan = tmp_path / vit.path.name
    content = bytearray(vit.path.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(bytes(content))
    manifest_path(plan).write_bytes(manifest_path(vit.path).read_bytes())
    with pytest.raises(BackendError, match="damaged, cut off or swapped"):
        TensorRtRtxBackend().load(replace(vit, path=plan))


def test_a_real_plan_is_not_loaded_without_a_gpu(vit: Artifact, no_gpu: None) -> None:
    with pytest.raises(RefusedPlan, match="there is no GPU here"):
        TensorRtRtxBackend().load(vit)


def test_the_real_runtime_has_what_is_used_of_it(rtx: Any) -> None:
    """The names that sessions and settings use, which no GPU here can run."""
    assert hasattr(rtx.ICudaEngine, "device_memory_size_v2")
    for name in (
        "active_optimization_profile", "execute_async_v3", "get_tensor_shape", "infer_shapes", "is_stream_capturable",
        "set_device_memory", "set_input_shape", "set_optimization_profile_async", "set_tensor_address",
    ):  # fmt: skip
        assert hasattr(rtx.IExecutionContext, name), name
    for name in (
        "create_runtime_cache", "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy", "set_runtime_cache",
    ):  # fmt: skip
        assert hasattr(rtx.IRuntimeConfig, name), name
    assert "runtime_config" in rtx.ICudaEngine.create_execution_context.__doc__


# Real engines on a real GPU. Not run where this was written.


@pytest.fixture(params=[TensorRtBackend, TensorRtRtxBackend])
def here(request: pytest.FixtureRequest) -> Any:
    made = request.param()
    found = made.probe()
    if not found.available:
        pytest.skip(found.reason)
    return made


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_real_engine_answers_as_onnx_runtime_does(here: Any, tmp_path: Path, cuda_graph: bool) -> None:
    from vitesse.backends import backend
    from vitesse.stages import open_model

    source = open_model(VIT)
    plan = here.build(source, Store(tmp_path)).artifact
    random = np.random.default_rng(0)
    with (
        here.load(plan, LoadOptions(cuda_graph=cuda_graph)) as engine,
        engine.session() as session,
        backend("onnxruntime").load(source, LoadOptions(reference=True)) as reference,
        reference.session() as expected,
    ):
        (info,) = engine.inputs
        for batch in (1, 8, 3, 1, 8, 1):
            shape = (batch, *(int(size) for size in info.shape[1:]))
            feeds = {info.name: random.standard_normal(shape).astype(info.dtype)}
            outcome, wanted = session.run(feeds), expected.run(feeds)
            for name, array in wanted.outputs.items():
                np.testing.assert_allclose(outcome.outputs[name], array, rtol=2e-2, atol=2e-2)
            assert outcome.device_ms is not None and 0 < outcome.device_ms < outcome.host_ms
