"""Figures of a fresh process, and every way it can fail without failing the caller."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tiny_onnx import FEATURES, as_artifact, linear, save, unknown_operator
from vitesse.backends.protocol import LoadOptions
from vitesse.benchmark import fresh_process as module
from vitesse.benchmark.fresh_process import FreshProcess, fresh_process

FEEDS = [{"x": np.ones((1, FEATURES), np.float32)}] * 3
ONE_THREAD = LoadOptions(threads=1)
NOTHING = (None, None, None, None)


def figures(found: FreshProcess) -> tuple[float | None, ...]:
    return (found.load_ms, found.cold_start_ms, found.memory_mb, found.base_mb)


def test_a_fresh_process_reports_load_first_call_and_memory(tmp_path: Path) -> None:
    found = fresh_process(linear(tmp_path), FEEDS, ONE_THREAD)
    assert found.unmeasured == ""
    assert found.calls == 3
    assert found.import_ms is not None and found.import_ms > 1
    assert found.load_ms is not None and 0 < found.load_ms < 10_000
    assert found.cold_start_ms is not None and 0 < found.cold_start_ms < 10_000
    assert found.memory_mb is not None and found.base_mb is not None
    assert 10 < found.base_mb <= found.memory_mb < 2000


def test_the_parents_memory_is_not_counted(tmp_path: Path) -> None:
    ballast = np.ones(60_000_000, np.float64)  # 480 MB, resident here
    found = fresh_process(linear(tmp_path), FEEDS, ONE_THREAD)
    assert ballast[-1] == 1
    assert found.memory_mb is not None and found.memory_mb < 300


def test_the_models_memory_is_counted(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((4000, 5000)).astype(np.float32)  # 80 MB
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4000])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    artifact = save(tmp_path / "wide.onnx", nodes, inputs, outputs, {"w": weights})
    found = fresh_process(artifact, [{"x": np.ones((1, 4000), np.float32)}], ONE_THREAD)
    assert found.memory_mb is not None and found.base_mb is not None
    assert found.memory_mb - found.base_mb > 80


def test_a_refused_model_is_unmeasured_with_the_reason(tmp_path: Path) -> None:
    found = fresh_process(unknown_operator(tmp_path), FEEDS)
    assert figures(found) == NOTHING
    assert found.unmeasured.startswith("the fresh process failed: ONNX Runtime")
    assert "Frobnicate" in found.unmeasured


def test_a_missing_file_or_runtime_is_unmeasured_with_the_reason(tmp_path: Path) -> None:
    artifact = linear(tmp_path)
    other = dataclasses.replace(artifact, backend="tensorflow")
    assert "unknown backend 'tensorflow'" in fresh_process(other, FEEDS).unmeasured
    artifact.path.unlink()
    assert "FileNotFoundError" in fresh_process(artifact, FEEDS).unmeasured


def test_a_timeout_is_unmeasured_with_the_limit(tmp_path: Path) -> None:
    found = fresh_process(linear(tmp_path), FEEDS, timeout_s=0.01)
    assert figures(found) == NOTHING
    assert found.unmeasured == "the fresh process did not finish within 0.01 s"


def test_a_crash_is_unmeasured_with_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho about to die >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(crash))
    found = fresh_process(linear(tmp_path), FEEDS)
    assert found.unmeasured == "the fresh process was killed by SIGSEGV; last line: about to die"


def test_an_exit_code_is_unmeasured_with_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = tmp_path / "python"
    ending.write_text("#!/bin/sh\necho out of luck >&2\nexit 7\n")
    ending.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(ending))
    found = fresh_process(as_artifact(linear(tmp_path).path), FEEDS)
    assert found.unmeasured == "the fresh process ended with exit code 7: out of luck"
