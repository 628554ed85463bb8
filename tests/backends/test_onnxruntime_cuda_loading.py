"""The CUDA provider, on a fake of it: opening, closing, options, and what is said where nothing can run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.cuda_sessions import check, opened, provider, rows
from backends.fake_onnxruntime import CUDA, FakeOnnxRuntime
from fusing import graph
from tiny_onnx import as_artifact
from vitesse.backends.onnxruntime import OnnxRuntimeEngine
from vitesse.errors import BackendError

# Opening and closing


def test_closed_sessions_and_engines_say_so(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    engine = opened(tmp_path)
    session, other = engine.session(), engine.session()
    session.close()
    session.close()
    for use in (session.run, session.run_on_device):
        with pytest.raises(BackendError, match="this session is closed"):
            use({"x": rows(1)})
    with pytest.raises(BackendError, match="this session is closed"):
        session.synchronize()
    check(other, 1)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="this engine is closed"):
        other.run({"x": rows(1)})
    with pytest.raises(BackendError, match="this engine is closed"):
        engine.session()


def test_an_engine_that_closes_before_its_sessions_leaves_nothing_behind(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    engine = opened(tmp_path)
    sessions = [engine.session() for _ in range(3)]
    for session in sessions:
        check(session, 2)
    kept = sessions[0].run({"x": rows(2)}).outputs["y"]
    engine.close()
    assert fake_cuda.driver.held() == {"host memory": 1}, "what the view shows, and nothing else"
    np.testing.assert_allclose(kept, 2 * rows(2) + 1, rtol=1e-6)
    for session in sessions:
        session.close()


def test_an_engine_that_was_never_asked_for_a_session_leaves_nothing_behind(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    opened(tmp_path).close()
    assert len(fake_cuda.made) == 1


def test_a_file_that_does_not_load_leaves_no_stream_behind(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match="while loading it") as refused:
        provider.OnnxRuntimeCudaBackend().load(as_artifact(tmp_path / "damaged.onnx"))
    assert "truncated or damaged" in refused.value.cause
    assert not fake_cuda.driver.held()


def test_tensors_that_cannot_be_fed_are_refused_and_leave_nothing_behind(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    path = tmp_path / "words.onnx"
    path.write_bytes(graph("y = Identity (x)", "string[N] x", "string[N] y").SerializeToString())
    with pytest.raises(BackendError, match=r"'x' of .*words.onnx is a tensor\(string\)"):
        provider.OnnxRuntimeCudaBackend().load(as_artifact(path))
    assert not fake_cuda.driver.held()


def test_a_provider_that_fell_back_to_the_cpu_is_refused(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    fake_cuda.falls_back = True
    for options in ({}, {"plain": True}):
        with pytest.raises(BackendError, match=r"runs the graph by its CPUExecutionProvider") as refused:
            opened(tmp_path, **options)
        assert refused.value.expected == f"the {CUDA}"
        assert "libraries were not found" in refused.value.cause
        assert "onnxruntime-gpu[cuda,cudnn]" in refused.value.fix
        assert not fake_cuda.driver.held()


# Options


def test_options_reach_the_provider(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda.driver.device = replace(fake_cuda.driver.device, number=2)
    asked: list[int] = []
    monkeypatch.setattr(provider, "cuda_driver", lambda device=0: asked.append(device) or fake_cuda.driver)
    with opened(tmp_path, device=2, memory_bytes=4096, tf32=False) as engine, engine.session() as session:
        settings = fake_cuda.settings[-1]
        assert settings == {
            "device_id": "2",
            "user_compute_stream": str(session._stream.handle),
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "enable_cuda_graph": "1",
            "gpu_mem_limit": "4096",
        }
        check(session, 1)
        with pytest.raises(BackendError, match=r"would pass the cap of 4,096 bytes"):
            session.run({"x": rows(200)})
        check(session, 1, 1)
    with opened(tmp_path, device=2, plain=True):
        assert fake_cuda.settings[-1] == {"device_id": "2"}, "nothing but where it is"
    with opened(tmp_path):
        assert fake_cuda.settings[-1]["use_tf32"] == "1"
        assert "gpu_mem_limit" not in fake_cuda.settings[-1]
    assert asked == [2, 2, 0]


def test_the_plain_baseline_takes_and_gives_numpy_arrays(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path, plain=True) as engine, engine.session() as session:
        assert isinstance(engine, OnnxRuntimeEngine)
        check(session, 2)


def test_the_reference_is_computed_on_the_cpu(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    for options in ({"reference": True}, {"emulate": True}):
        with opened(tmp_path, **options) as engine, engine.session() as session:
            check(session, 2)
    assert not fake_cuda.made


# What is said where nothing can run


def test_a_build_without_the_provider_is_named_with_the_way_out(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    fake_cuda.has_cuda = False
    found = provider.OnnxRuntimeCudaBackend().probe()
    assert not found.available
    assert found.reason == "this build of ONNX Runtime 9.9.9 has no CUDA provider"
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in found.fix
    with pytest.raises(BackendError, match="cannot run on CUDA: this build") as refused:
        opened(tmp_path)
    assert refused.value.fix == found.fix


def test_a_missing_gpu_is_named(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "unavailable", lambda: "CUDA says cudaErrorNoDevice on looking for GPUs")
    found = provider.OnnxRuntimeCudaBackend().probe()
    assert (found.available, found.reason) == (False, "CUDA says cudaErrorNoDevice on looking for GPUs")
    assert "nvidia-smi" in found.fix
    with pytest.raises(BackendError, match="cannot run on CUDA: CUDA says cudaErrorNoDevice"):
        opened(tmp_path)


def test_with_a_gpu_version_device_and_precisions_are_told(fake_cuda: FakeOnnxRuntime) -> None:
    found = provider.OnnxRuntimeCudaBackend().probe()
    assert (found.available, found.version, found.reason) == (True, "9.9.9", "")
    assert found.devices == ("GPU: Fake H100",)
    assert found.precisions == ("fp32", "fp16", "bf16")


def test_this_machine_says_truly_whether_cuda_runs_here(tmp_path: Path) -> None:
    """Nothing is faked: ONNX Runtime and CUDA as they are installed."""
    found = provider.OnnxRuntimeCudaBackend().probe()
    if found.available:
        with opened(tmp_path, tf32=False) as engine, engine.session() as session:
            check(session, 2)
        return
    assert "has no CUDA provider" in found.reason or found.reason == provider.unavailable()
    assert found.fix
    with pytest.raises(BackendError) as refused, ExitStack() as stack:
        stack.enter_context(opened(tmp_path))
    assert found.reason in refused.value.what
    assert refused.value.fix == found.fix
