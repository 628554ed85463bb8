"""Whole runs of the GPU benchmark on the CPU with tiny models: who is measured, who is not, and what is kept."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpu_benchmark import gpu_module

torch = pytest.importorskip("torch", reason="the benchmark's models and peers are torch modules")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of vit_tiny."""
    folder = tmp_path_factory.mktemp("graphs")
    graphs = gpu_module("graphs")
    graphs.make("vit_tiny", graphs.PRECISIONS, folder)
    return folder


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, its target on the CPU, with as few calls as there can be."""
    from vitesse.backends.torch_cuda.backend import TorchCudaBackend

    timing = gpu_module("timing")
    for name, few in {"LEAST_ROUNDS": 2, "MOST_CALLS": 3, "WARM_UP_CALLS": 3}.items():
        monkeypatch.setattr(timing, name, few)
    monkeypatch.setattr(gpu_module("ours"), "backend", lambda name: TorchCudaBackend("cpu"))
    return gpu_module("__main__")


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return ["race", "--device", "cpu", "--seconds", "0", "--folder", str(folder), "--out", str(out), *more]


def test_a_race_measures_ours_beside_its_peers_and_says_who_could_not(
    program: ModuleType, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "race.json"
    peers = "torch eager,torch + CUDA graph"
    program.main(arguments(made, out, "--rows", "vit_tiny:2:fp16,vit_tiny:2:fp8", "--peers", peers))
    record = json.loads(out.read_text())
    found = record["groups"]["vit_tiny:2"]
    assert set(found["candidates"]) == {"torch-cuda fp16", "torch-cuda fp8", "torch eager"}
    assert set(found["samples"]) == set(found["candidates"])
    assert found["refused"] == {"torch + CUDA graph": "RuntimeError: there are no CUDA graphs on the CPU"}
    for label, limit in {"torch-cuda fp16": 5e-3, "torch-cuda fp8": 0.12, "torch eager": 5e-3}.items():
        one = found["candidates"][label]
        assert one["ms"] > 0
        assert one["parity"][0]["norm_rel"] < limit, label
    ours = found["candidates"]["torch-cuda fp16"]
    assert ours["build"]["artifact_mb"] > 0.1
    assert ours["build"]["changes"]["by plain"] > 5 * 6
    # Fresh processes have no target on the CPU.
    assert all("cannot run on torch-cuda" in one["unmeasured"] for one in ours["load"].values())
    assert str(tmp_path) not in out.read_text()


def test_a_run_that_is_stopped_keeps_the_groups_it_had(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = gpu_module("race").Race
    whole = race.run

    def stopped(self: Any, group: Any, keep: Any) -> Any:
        if group.batch == 2:
            raise KeyboardInterrupt
        return whole(self, group, keep)

    monkeypatch.setattr(race, "run", stopped)
    out = tmp_path / "race.json"
    rows = "vit_tiny:1:fp32,vit_tiny:2:fp32"
    with pytest.raises(KeyboardInterrupt):
        program.main(arguments(made, out, "--rows", rows, "--peers", "torch eager", "--without-ours"))
    assert list(json.loads(out.read_text())["groups"]) == ["vit_tiny:1"]


def test_a_run_that_is_stopped_or_fails_keeps_the_candidates_it_had_opened(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = gpu_module("race")
    peers = gpu_module("peers").PEERS

    def ending(given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(peers, "ending", ending)
    out = tmp_path / "race.json"
    rows = ("--rows", "vit_tiny:1:fp32", "--without-ours", "--peers")
    with pytest.raises(KeyboardInterrupt):
        program.main(arguments(made, out, *rows, "torch eager,ending"))
    found = json.loads(out.read_text())["groups"]["vit_tiny:1"]
    assert found["candidates"]["torch eager"]["alone_ms"] > 0
    assert "ms" not in found["candidates"]["torch eager"]
    monkeypatch.setattr(race, "interleaved", lambda *_: 1 / 0)
    program.main(arguments(made, out, *rows, "torch eager"))
    found = json.loads(out.read_text())["groups"]["vit_tiny:1"]
    assert found["failed"] == "ZeroDivisionError: division by zero"
    assert found["candidates"]["torch eager"]["alone_ms"] > 0


def test_a_short_build_tries_what_it_is_told(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = gpu_module("ours")
    asked: list[Any] = []
    monkeypatch.setattr(ours, "backend", lambda name: asked)
    monkeypatch.setattr(ours, "BuildOptions", lambda **options: asked.append(options) or 1 / 0)
    out = tmp_path / "race.json"
    few = ("--tactics", "3", "--build-seconds", "0.05")
    program.main(arguments(made, out, "--rows", "vit_tiny:2:fp32", "--peers", "none", *few))
    assert asked == [{"batch": (2, 2, 2), "tactics": 3, "seconds": 0.05}]


def test_a_group_that_fails_is_told_and_the_next_goes_on(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = gpu_module("race")
    whole = race.reference

    def failing(given: Any) -> Any:
        if len(given.images) == 1:
            raise RuntimeError("out of memory")
        return whole(given)

    monkeypatch.setattr(race, "reference", failing)
    out = tmp_path / "race.json"
    rows = "vit_tiny:1:fp32,vit_tiny:2:fp32"
    program.main(arguments(made, out, "--rows", rows, "--peers", "torch eager", "--without-ours"))
    groups = json.loads(out.read_text())["groups"]
    assert groups["vit_tiny:1"]["failed"] == "RuntimeError: out of memory"
    assert groups["vit_tiny:2"]["candidates"]["torch eager"]["ms"] > 0


def test_a_candidate_that_takes_too_long_is_not_finished_and_the_others_go_on(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = gpu_module("peers")

    @contextmanager
    def endless(given: Any) -> Iterator[Any]:
        with peers.within(given.limit_s):
            while True:
                pass
        yield

    monkeypatch.setitem(peers.PEERS, "endless", endless)
    out = tmp_path / "race.json"
    more = (
        "--rows",
        "vit_tiny:1:fp32",
        "--peers",
        "endless,torch eager",
        "--without-ours",
        "--limit-s",
        "3",
    )
    program.main(arguments(made, out, *more))
    found = json.loads(out.read_text())["groups"]["vit_tiny:1"]
    assert found["refused"] == {"endless": "not finished in 3 s"}
    assert list(found["samples"]) == ["torch eager"]


def test_what_was_not_compiled_ahead_is_not_tried_in_the_race(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling = gpu_module("compiling")
    late = {"vit_tiny:1 torch.compile": "not finished in 9 s", "vit_tiny:1 torch.compile max-autotune": 8.0}
    assert compiling.unready(late) == {
        "vit_tiny:1 torch.compile": "not finished in 9 s",
        "vit_tiny:1 torch.compile reduce-overhead": "not finished in 9 s",
    }
    monkeypatch.setattr(compiling, "compile_all", lambda *_: late)
    out = tmp_path / "race.json"
    peers = "torch.compile,torch.compile reduce-overhead,torch eager"
    program.main(arguments(made, out, "--rows", "vit_tiny:1:fp32", "--peers", peers, "--without-ours"))
    found = json.loads(out.read_text())["groups"]["vit_tiny:1"]
    assert set(found["refused"].values()) == {"not finished in 9 s"}
    assert len(found["refused"]) == 2
    assert list(found["samples"]) == ["torch eager"]


def test_compiling_apart_ends_with_its_time(tmp_path: Path) -> None:
    group = gpu_module("race").Group("vit_tiny", 1, ("fp32",))
    said = gpu_module("compiling").compiled_apart(group, "torch.compile", tmp_path, 0.3)
    assert said == "not finished in 0.3 s"


def test_a_wrong_candidate_is_refused_before_it_is_timed(
    program: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = gpu_module("peers")

    @contextmanager
    def broken(given: Any) -> Iterator[Any]:
        yield peers.Candidate(lambda: (torch.full((1, 1000), float("inf")),), None)

    monkeypatch.setitem(peers.PEERS, "broken", broken)
    out = tmp_path / "race.json"
    program.main(arguments(made, out, "--rows", "vit_tiny:1:fp32", "--peers", "broken", "--without-ours"))
    found = json.loads(out.read_text())["groups"]["vit_tiny:1"]
    assert found["refused"] == {"broken": "ValueError: an output has NaN or infinity"}
    assert found["candidates"] == found["samples"] == {}


def test_a_profile_names_kernels_and_the_steps_of_the_plan(
    program: ModuleType, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "profile.json"
    given = [
        "profile",
        "--rows",
        "vit_tiny:2:fp16",
        "--device",
        "cpu",
        "--folder",
        str(made),
        "--out",
        str(out),
    ]
    program.main(given)
    found = json.loads(out.read_text())["rows"]["vit_tiny:2:fp16"]
    assert sum(one["share"] for one in found["kernels"]) == pytest.approx(1, abs=0.01)
    assert {"Linear", "Norm", "Attention", "Patches"} <= {one["step"] for one in found["steps"]}


def test_an_unknown_peer_is_refused(program: ModuleType) -> None:
    with pytest.raises(ValueError, match="torch eager"):
        program.peers_of("torch eeger")
    assert program.peers_of("none") == []
