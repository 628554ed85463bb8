"""Groups of the GPU benchmark in processes of their own, on the CPU: prepared side by side, measured in turn."""

import json
from pathlib import Path

import pytest

from gpu_benchmark import gpu_module

pytest.importorskip("torch", reason="the benchmark's models and peers are torch modules")


def test_groups_at_once_are_measured_and_tell_who_was_not_ready(tmp_path: Path) -> None:
    out = tmp_path / "race.json"
    gpu_module("__main__").main(
        [
            *(
                "race",
                "--at-once",
                "--device",
                "cpu",
                "--seconds",
                "0",
                "--profiles",
                "--loads",
                "vit_tiny:1",
            ),
            *("--rows", "vit_tiny:1:fp32,vit_tiny:2:fp32", "--peers", "torch eager,torch + CUDA graph"),
            *("--folder", str(tmp_path), "--out", str(out)),
        ]
    )
    record = json.loads(out.read_text())
    assert list(record["compiled"]) == ["vit_tiny torch-cuda fp32"]
    for name in ("vit_tiny:1", "vit_tiny:2"):
        found = record["groups"][name]
        assert found["candidates"]["torch eager"]["ms"] > 0
        assert list(found["samples"]) == ["torch eager"]
        # There is no GPU to build for: the reason came from the process that should have built.
        assert "failed: " in found["refused"]["torch-cuda fp32"]
        assert "pip install 'vitesse[torch-cuda]'" in found["refused"]["torch-cuda fp32"]
        assert found["refused"]["torch + CUDA graph"] == "RuntimeError: there are no CUDA graphs on the CPU"


def test_a_process_that_dies_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = gpu_module("at_once")
    ending = "import sys; print('{\"ready\": true}', flush=True); sys.stdin.readline(); sys.exit(7)"
    whole = at_once.subprocess.Popen

    def started(command: list[str], **options: object) -> object:
        return whole([command[0], "-c", ending] if '"batch": 1' in command[-1] else command, **options)

    monkeypatch.setattr(at_once.subprocess, "Popen", started)
    settings = at_once.Settings(
        folder=str(tmp_path), device="cpu", peers=["torch eager"], seconds=0.0, limit_s=60.0,
        batches={"vit_tiny": [1, 2]}, ours=False, effort=at_once.Effort(), loads=None, profiles=False,
    )  # fmt: skip
    groups = [at_once.Group("vit_tiny", batch, ("fp32",)) for batch in (1, 2)]
    said: dict[str, dict] = {}
    at_once.race(groups, settings, {}, lambda one: said.update({one["group"]: one["found"]}))
    assert said["vit_tiny:1"]["failed"] == "its process ended with 7"
    assert said["vit_tiny:2"]["candidates"]["torch eager"]["ms"] > 0


def test_the_reason_of_a_process_is_its_exception_without_folders() -> None:
    reason = gpu_module("apart").reason
    trace = 'Traceback (most recent call last):\n  File "/home/a/b.py", line 3\n    x = 1\n'
    said = f"{trace}a.b.BackendError: /tmp/x/m.onnx cannot run\n  next step: pip\n"
    assert reason(said) == "a.b.BackendError: m.onnx cannot run next step: pip"
    assert reason("Killed\n") == "Killed"
    assert reason("") == "no message"
