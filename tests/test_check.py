"""`vitesse check`: the verdict, the reasons and the exit code for one engine or all of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx
import pytest

from backends.cuda.fake_driver import H100
from backends.tensorrt.fake_api import World, fake_api
from backends.tensorrt.plans import RTX_4090, doubling, kept_plan
from vitesse.backends.cuda.driver import Device
from vitesse.cli import check
from vitesse.errors import UsageError

FITNESS = "vitesse.backends.tensorrt.fitness"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that TensorRT and a GPU, or none, are here."""

    def set_up(device: Device | None) -> None:
        api = fake_api(World())
        monkeypatch.setattr(f"{FITNESS}.load_api", lambda module: api)
        monkeypatch.setattr(
            f"{FITNESS}.current_device", lambda number=0: (device, "" if device else "no driver")
        )

    return set_up


def checked(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    check.add(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    code: int = options.run(options)
    return code


def test_an_engine_that_runs_here_is_said_to_and_exits_with_0(
    here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(H100)
    plan = kept_plan(tmp_path).path
    assert checked(plan) == 0
    assert (
        capsys.readouterr().out
        == f"on Fake H100, compute capability 9.0\nruns       {plan}  (fp16 for sm90, tensorrt 10.13.0)\n"
    )


def test_an_engine_for_another_gpu_exits_with_1_and_says_how_to_build_it(
    here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(RTX_4090)
    assert checked(kept_plan(tmp_path).path) == 1
    out = capsys.readouterr().out
    assert "refused    " in out
    assert "\n  it was built for sm90, this is NVIDIA GeForce RTX 4090, sm89\n" in out
    assert "\n  next step: for sm89, build it again: vitesse build run/ --target tensorrt\n" in out


def test_without_a_gpu_the_answer_is_unknown_and_exits_with_1(
    here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(None)
    assert checked(kept_plan(tmp_path).path) == 1
    out = capsys.readouterr().out
    assert out.startswith("no GPU here: no driver\nunknown    ")


def test_all_engines_of_a_run_are_judged_and_one_that_fails_decides(
    here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(H100)
    good = kept_plan(tmp_path).path
    assert checked(tmp_path) == 0
    bad = good.with_name("build-tensorrt-0.plan")
    bad.write_bytes(b"noise")
    assert checked(tmp_path) == 1
    out = capsys.readouterr().out
    assert f"refused    {bad}\n  {bad} has no manifest" in out
    assert out.count(f"runs       {good}") == 2


def test_a_path_with_no_engine_is_wrong_usage(here: Any, tmp_path: Path) -> None:
    here(H100)
    with pytest.raises(UsageError, match="is not there") as caught:
        checked(tmp_path / "gone.plan")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="holds no engine") as caught:
        checked(tmp_path)
    assert "vitesse build" in caught.value.fix


def test_an_engine_is_compared_with_a_model(
    here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(H100)
    plan = kept_plan(tmp_path).path
    assert checked(plan, "--against", tmp_path / "model.onnx") == 0
    assert f"built from {tmp_path / 'model.onnx'}: the same file" in capsys.readouterr().out
    model = onnx.load(doubling(tmp_path).path)
    model.graph.initializer[0].float_data[0] = 3.0
    onnx.save(model, tmp_path / "trained-on.onnx")
    assert checked(plan, "--against", tmp_path / "trained-on.onnx") == 1
    out = capsys.readouterr().out
    assert "not built from" in out and "the weights are others" in out
    assert "next step: build it again: vitesse build run/" in out
