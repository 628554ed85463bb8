"""Defaults: sessions without batches on a CPU, what `tune` found on a GPU as long as it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitesse.environment import usable_cores
from vitesse.errors import BackendError, UsageError
from vitesse.ledger import Ledger
from vitesse.run import Run
from vitesse.serve import settings
from vitesse.serve.settings import settings_for
from vitesse.tuning import Setting, Settings, Tuned, save_tuning

GPU, SHA256 = "NVIDIA H100", "a" * 64


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(settings, "device_name", lambda device: GPU)
    ledger = object.__new__(Ledger)  # nothing of it is read where the artifact is named
    return Run(tmp_path, ledger)


def tuned(run: Run, throughput: Setting | None, *, sha256: str = SHA256, device: str = GPU) -> None:
    save_tuning(run.folder, Tuned("tensorrt", device, sha256, Settings(None, throughput)))


@pytest.mark.parametrize("target", ["cpu", "onnxruntime", "openvino"])
def test_a_cpu_gets_a_session_of_one_thread_for_each_core_and_no_batches(run: Run, target: str) -> None:
    found = settings_for(run, target, artifact_sha256=SHA256)
    assert (found.workers, found.max_items, found.max_wait_s, found.threads) == (usable_cores(), 1, 0.0, 1)


def test_a_gpu_gets_what_tune_found(run: Run) -> None:
    tuned(run, Setting(16, 3, 0, False, 900.0, verdict="clean"))
    found = settings_for(run, "tensorrt", artifact_sha256=SHA256)
    assert (found.workers, found.max_items, found.max_wait_s, found.cuda_graph) == (3, 16, 0.002, False)
    assert "measured it for most images per second on this GPU (clean)" in found.why


def test_a_tuned_batch_of_one_waits_for_nobody(run: Run) -> None:
    tuned(run, Setting(1, 2, 0, True, 900.0))
    assert settings_for(run, "tensorrt", artifact_sha256=SHA256).max_wait_s == 0.0


def test_a_gpu_that_was_not_tuned_gets_the_default_and_the_reason(run: Run) -> None:
    found = settings_for(run, "tensorrt", artifact_sha256=SHA256)
    assert (found.workers, found.max_items, found.max_wait_s) == (1, 8, 0.002)
    assert "not tuned for tensorrt: run `vitesse tune" in found.why


@pytest.mark.parametrize(
    ("sha256", "device", "reason"),
    [("b" * 64, GPU, "tuned with the artifact bbbb"), (SHA256, "NVIDIA T4", "tuned for NVIDIA T4, not for")],
)
def test_settings_for_something_else_do_not_hold(run: Run, sha256: str, device: str, reason: str) -> None:
    tuned(run, Setting(16, 3), sha256=sha256, device=device)
    found = settings_for(run, "tensorrt", artifact_sha256=SHA256)
    assert (found.workers, found.max_items) == (1, 8) and reason in found.why


def test_a_tuning_that_found_nothing_is_said(run: Run) -> None:
    tuned(run, None)
    assert "nothing measured kept the limits" in settings_for(run, "tensorrt", artifact_sha256=SHA256).why


def test_a_gpu_without_a_name_gets_the_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(device: int) -> str:
        raise BackendError("no CUDA driver")

    monkeypatch.setattr(settings, "device_name", nobody)
    assert "no CUDA driver" in settings_for(run, "cuda", artifact_sha256=SHA256).why


def test_an_unknown_target_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="unknown target 'tpu'"):
        settings_for(run, "tpu")
