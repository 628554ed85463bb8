"""The benchmark of torch-cuda on the CPU with tiny models: graphs, modules, peers, rounds, and what a run keeps."""

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from gpu_benchmark import gpu_module

torch = pytest.importorskip("torch", reason="the benchmark's models and peers are torch modules")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of vit_tiny and dino_tiny."""
    folder = tmp_path_factory.mktemp("graphs")
    graphs = gpu_module("graphs")
    graphs.make("vit_tiny", graphs.PRECISIONS, folder)
    graphs.make("dino_tiny", ("fp32",), folder)
    return folder


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": images})[0]
    return found


def images_of(name: str, count: int = 3) -> np.ndarray:
    shape = (count, 3, *gpu_module("models").MODELS[name].size)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# --- models


@pytest.mark.parametrize("name", ["vit_tiny", "dino_tiny"])
def test_a_repeated_graph_computes_what_the_whole_module_does(made: Path, name: str) -> None:
    images = images_of(name)
    models = gpu_module("models")
    wanted = models.module_of(models.MODELS[name])(torch.from_numpy(images)).numpy()
    assert distance(answers(made / f"{name}_fp32.onnx", images), wanted) < 1e-5


def test_the_module_without_rotated_matrices_is_another(made: Path) -> None:
    images = images_of("vit_tiny")
    models = gpu_module("models")
    module = models.module_of(models.MODELS["vit_tiny"])
    weight = module.get_submodule("blocks.2.mlp.dense1").weight
    weight.copy_(torch.roll(weight, -1, 1))
    wanted = module(torch.from_numpy(images)).numpy()
    assert distance(answers(made / "vit_tiny_fp32.onnx", images), wanted) > 1e-3


def test_repeating_gives_the_nodes_that_tracing_all_blocks_gives(made: Path, tmp_path: Path) -> None:
    models, graphs = gpu_module("models"), gpu_module("graphs")
    tiny = models.MODELS["vit_tiny"]
    whole = replace(tiny, make=lambda _: tiny.make(tiny.blocks), blocks=0)
    models.MODELS["vit_whole"] = whole
    try:
        graphs.make("vit_whole", ("fp32",), tmp_path)
    finally:
        del models.MODELS["vit_whole"]
    counts = [
        sorted(node.op_type for node in onnx.load(path).graph.node)
        for path in (made / "vit_tiny_fp32.onnx", tmp_path / "vit_whole_fp32.onnx")
    ]
    assert counts[0] == counts[1]


def test_fp16_and_fp8_graphs_stay_near_the_module(made: Path) -> None:
    images = images_of("vit_tiny")
    models = gpu_module("models")
    wanted = models.module_of(models.MODELS["vit_tiny"])(torch.from_numpy(images)).numpy()
    assert distance(answers(made / "vit_tiny_fp16.onnx", images), wanted) < 3e-3
    assert 1e-3 < distance(answers(made / "vit_tiny_fp8.onnx", images), wanted) < 0.12
    nodes = onnx.load(made / "vit_tiny_fp8.onnx").graph.node
    assert sum(node.op_type == "MatMul" for node in nodes) >= 5 * 6
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in nodes}


def test_every_copy_of_a_block_has_matrices_of_its_own(made: Path) -> None:
    graph = onnx.load(made / "vit_tiny_fp16.onnx").graph
    large = [tensor.raw_data for tensor in graph.initializer if tensor.raw_data and len(tensor.dims) == 2]
    assert len(large) >= 5 * 6
    assert len(set(large)) == len(large)


def test_a_graph_of_another_form_is_not_repeated() -> None:
    repeat = gpu_module("repeat")
    value = onnx.helper.make_tensor_value_info("x", 1, [1, 4])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", 1, [1, 4])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output]))
    with pytest.raises(ValueError, match="0 LayerNormalization"):
        repeat.repeated(model, 12)


# --- rows


def test_rows_are_read_and_grouped_by_model_and_batch() -> None:
    rows, race = gpu_module("rows"), gpu_module("race")
    found = rows.rows_of("vit_b16:32:fp16, vit_b16:1:fp16,vit_b16:32:fp8")
    assert [one.name for one in found] == ["vit_b16:32:fp16", "vit_b16:1:fp16", "vit_b16:32:fp8"]
    groups = race.groups_of(found)
    assert [(one.name, one.precisions) for one in groups] == [
        ("vit_b16:32", ("fp16", "fp8")),
        ("vit_b16:1", ("fp16",)),
    ]
    assert len(rows.rows_of("")) == len(gpu_module("tables").TARGETS)


@pytest.mark.parametrize(
    "text", ["vit_b16", "vit_b17:1:fp16", "vit_b16:0:fp16", "vit_b16:one:fp16", "vit_b16:1:int8"]
)
def test_an_unknown_row_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="MODEL:BATCH:PRECISION"):
        gpu_module("rows").rows_of(text)


def test_the_tables_of_the_page_name_all_peers() -> None:
    assert list(gpu_module("tables").PEERS) == list(gpu_module("peers").PEERS)
    models = gpu_module("models").MODELS
    assert {name: models[name].title for name in gpu_module("tables").TITLES} == gpu_module("tables").TITLES


# --- rounds


class Counted:
    stream = None

    def __init__(self, calls: list[str], name: str) -> None:
        self._calls, self._name = calls, name

    def call(self) -> None:
        self._calls.append(self._name)


def test_rounds_rotate_and_keep_every_sample() -> None:
    timing = gpu_module("timing")
    calls: list[str] = []
    found = timing.interleaved({name: Counted(calls, name) for name in "abc"}, seconds=0.0)
    assert {name: len(one.calls) for name, one in found.items()} == dict.fromkeys("abc", timing.LEAST_ROUNDS)
    assert all(len(block) == timing.MOST_CALLS for one in found.values() for block in one.calls)
    measured = calls[-timing.LEAST_ROUNDS * 3 * (timing.MOST_CALLS + 1 + timing.SINGLE_CALLS) :]
    order = [name for at, name in enumerate(measured) if at == 0 or measured[at - 1] != name]
    # The last of a round and the first of the next are never the same candidate.
    assert order[:9] == list("abcbcacab")
    samples = [ms for block in found["a"].calls for ms in block]
    assert found["a"].figures()["ms"] == statistics.median(samples)


def test_events_that_do_not_enclose_the_work_are_refused() -> None:
    timing = gpu_module("timing")
    timing.check_enclosed(9.0, 10.0)
    with pytest.raises(ValueError, match="another stream"):
        timing.check_enclosed(0.2, 10.0)


def test_parity_is_by_largest_value_and_by_norm_and_refuses_what_is_no_answer() -> None:
    race = gpu_module("race")
    wanted = [torch.tensor([[3.0, -4.0]])]
    (found,) = race.parity([torch.tensor([[3.0, -4.2]])], wanted)
    assert found["max_abs"] == pytest.approx(0.2, rel=1e-5)
    assert found["max_rel"] == pytest.approx(0.05, rel=1e-5)
    assert found["norm_rel"] == pytest.approx(0.04, rel=1e-5)
    with pytest.raises(ValueError, match="NaN"):
        race.parity([torch.tensor([[3.0, float("nan")]])], wanted)
    with pytest.raises(ValueError, match="shapes"):
        race.parity([torch.tensor([3.0, -4.0])], wanted)


# --- whole runs


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, its target on the CPU, with as few calls as there can be."""
    from vitesse.backends.torch_cuda.backend import TorchCudaBackend

    timing = gpu_module("timing")
    for name, few in {"LEAST_ROUNDS": 2, "MOST_CALLS": 3, "WARM_UP_CALLS": 3}.items():
        monkeypatch.setattr(timing, name, few)
    monkeypatch.setattr(gpu_module("ours"), "backend", lambda name: TorchCudaBackend("cpu"))
    return gpu_module("__main__")


def arguments(made: Path, out: Path, *more: str) -> list[str]:
    return ["race", "--device", "cpu", "--seconds", "0", "--folder", str(made), "--out", str(out), *more]


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


def test_launches_and_times_of_kernels_are_those_of_one_call() -> None:
    profiling = gpu_module("profiling")
    lines = profiling.summed({"a": [1.0] * profiling.CALLS, "b": [3.0] * 2 * profiling.CALLS})
    assert lines == [
        {"kernel": "b", "us": 6.0, "launches": 2.0, "share": 0.8571},
        {"kernel": "a", "us": 1.0, "launches": 1.0, "share": 0.1429},
    ]


def test_accuracy_counts_labelled_images_in_every_precision(tmp_path: Path) -> None:
    accuracy = gpu_module("accuracy")
    found = accuracy.measure(accuracy.EXAMPLES / "vit", tmp_path, "onnxruntime")
    assert found["images"] == 500
    assert found["loss_points"]["fp32"] == 0
    assert set(found["top1"]) == {"fp32", "fp16", "fp8"}
    assert all(abs(loss) < 1 for loss in found["loss_points"].values())


def test_an_unknown_peer_is_refused(program: ModuleType) -> None:
    with pytest.raises(ValueError, match="torch eager"):
        program.peers_of("torch eeger")
    assert program.peers_of("none") == []
