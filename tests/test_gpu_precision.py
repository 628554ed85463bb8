"""What travels to a GPU machine and back: the feeds to the bit, the outputs of the right images, faults kept as faults.

There is no GPU here: the script runs on the provider for CPUs, which is the same but for the device of its buffers.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from benchmark_scripts import benchmark
from fashion import DETR, FOLDER, artifact_of
from vitesse.data.dataset import open_dataset
from vitesse.data.preprocess import feeds
from vitesse.data.split import Split
from vitesse.spec import ModelSpec, Resize
from vitesse.verify.accuracy import evaluate

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return benchmark("gpu_precision")


@pytest.fixture(scope="module")
def scores() -> ModuleType:
    return benchmark("gpu_precision_scores")


@pytest.fixture(scope="module")
def data() -> tuple[ModelSpec, Split]:
    spec = artifact_of(DETR).spec
    return spec, open_dataset(FOLDER / "detr", spec=spec).val.spread(4)


@pytest.fixture(scope="module")
def prepared(
    scores: ModuleType, data: tuple[ModelSpec, Split], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    file = tmp_path_factory.mktemp("gpu") / "data.npz"
    np.savez_compressed(file, **scores.prepared(*data))
    return file


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *models: str) -> dict:  # type: ignore[type-arg]
    quick = ["--provider", CPU, "--seconds", "0.1", "--batches", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["gpu_precision.py", str(data), *models, "--out", str(out), *quick])
    gpu.main()
    found: dict = json.loads((out / "times.json").read_text())  # type: ignore[type-arg]
    return found


def session(path: Path = DETR) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=[CPU])


def test_the_feeds_are_restored_to_the_bit(
    gpu: ModuleType, prepared: Path, data: tuple[ModelSpec, Split]
) -> None:
    spec, split = data
    stored = dict(np.load(prepared))
    assert stored["pixels"].dtype == np.uint8
    for index, (sample, pixels) in enumerate(split):
        wanted = feeds([pixels], spec)[spec.image_input]
        found = gpu.feeds(session(), stored, [index])[spec.image_input]
        assert np.array_equal(found, wanted), sample.path.name


def test_an_image_that_is_padded_is_refused(scores: ModuleType, data: tuple[ModelSpec, Split]) -> None:
    spec, split = data
    # Zero lies between two grey values for these means.
    rules = replace(spec.preprocessing, size=(256, 300), resize=Resize.LETTERBOX, mean=(0.485, 0.456, 0.406))
    with pytest.raises(ValueError, match="the feed is not a normalised image of 8 bits"):
        scores.prepared(replace(spec, preprocessing=rules), split)


def test_the_whole_way_gives_the_accuracy_of_the_file_and_keeps_faults_apart(
    gpu: ModuleType,
    scores: ModuleType,
    prepared: Path,
    data: tuple[ModelSpec, Split],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, split = data
    shifted = onnx.load(DETR)
    boxes = spec.outputs["boxes"]
    next(node for node in shifted.graph.node if boxes in node.output).output[0] = "whole"
    shifted.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]))
    shifted.graph.node.append(helper.make_node("Mul", ["whole", "half"], [boxes], "halve"))
    onnx.save(shifted, tmp_path / "broken.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no model")

    models = (f"fp32={DETR}", f"broken={tmp_path / 'broken.onnx'}", f"damaged={tmp_path / 'damaged.onnx'}")
    times = run(gpu, monkeypatch, prepared, tmp_path / "out", *models)

    found = scores.accuracies(dict(np.load(tmp_path / "out" / "outputs.npz")), spec, split, "fp32")
    runtime = session()
    names = [entry.name for entry in runtime.get_outputs()]
    wanted = evaluate(
        lambda given: dict(zip(names, runtime.run(names, dict(given)), strict=True)), split, spec
    ).accuracy
    assert found["fp32"] == {"metric": "coco_ap", "value": wanted.value, "drop": 0.0, "images": 4}
    assert found["broken"]["drop"] > 50
    assert "damaged" not in found

    for batch in ("1", "2"):
        figures = times["batches"][batch]
        assert figures["fp32"]["gain"] == 1.0
        assert figures["broken"]["p50_ms"] > 0
        assert len(figures["broken"]["rounds_ms"]) >= 6
        assert set(figures["damaged"]) == {"error"}
    assert "error" in times["models"]["damaged"]
    assert times["models"]["fp32"]["on_cpu"] == {}


def test_without_a_first_file_that_runs_there_are_times_but_no_gains(
    gpu: ModuleType, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (f"fp32={tmp_path / 'gone.onnx'}", f"other={DETR}")
    times = run(gpu, monkeypatch, prepared, tmp_path / "out", *models)
    assert "p50_ms" in times["batches"]["1"]["other"]
    assert "gain" not in times["batches"]["1"]["other"]


def test_outputs_of_other_images_are_refused(scores: ModuleType, data: tuple[ModelSpec, Split]) -> None:
    spec, split = data
    outputs = {"names": np.array(["another.jpg"] * len(split))}
    with pytest.raises(ValueError, match="outputs of 4 images, not of the 4 asked for"):
        scores.accuracies(outputs, spec, split, "fp32")


def test_without_the_cuda_provider_it_says_what_to_install(
    gpu: ModuleType, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(sys, "argv", ["gpu_precision.py", str(prepared), f"a={DETR}", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no CUDAExecutionProvider: install onnxruntime-gpu"):
        gpu.main()


def test_a_session_that_fell_back_to_the_cpu_is_an_error(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen = session()
    monkeypatch.setattr(gpu.ort, "InferenceSession", lambda *_, **__: fallen)
    with pytest.raises(RuntimeError, match="the session runs on CPUExecutionProvider, not on CUDA"):
        gpu.opened("fp32", str(DETR), gpu.CUDA, graph=False)


def test_a_model_with_float16_inputs_is_fed_float16(gpu: ModuleType, prepared: Path, tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT16, [1, 3, 256, 256])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)
    stored = dict(np.load(prepared)) | {"image_input": np.array("images")}
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "g", [image], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "half.onnx")
    assert gpu.feeds(session(tmp_path / "half.onnx"), stored, [0])["images"].dtype == np.float16


def test_the_table_shows_times_gains_accuracy_and_why_there_is_none() -> None:
    table = benchmark("gpu_precision_table")
    found = {
        "environment": {"gpu": "A GPU, 580", "onnxruntime": "1.31.1"},
        "command": "python this",
        "models": {
            "fp32": {"on_cpu": {}},
            "int8": {"on_cpu": {"QuantizeLinear": 3}},
            "fp8": {"error": "no | kernel"},
        },
        "batches": {
            "1": {
                "fp32": {"p50_ms": 2.0, "gain": 1.0, "gain_spread": [0.99, 1.01]},
                "int8": {"p50_ms": 1.0, "gain": 2.0, "gain_spread": [1.9, 2.1]},
                "fp8": {"error": "no | kernel"},
            }
        },
        "accuracy": {
            "fp32": {"metric": "top1", "value": 0.9345, "drop": 0.0, "images": 2000},
            "int8": {"metric": "top1", "value": 0.9340, "drop": 0.05, "images": 2000},
        },
    }
    lines = table.case_table("vit", found).splitlines()
    assert (
        lines[0]
        == "**vit**: `python this` on A GPU, 580, ONNX Runtime 1.31.1, CUDA provider; top-1 on 2000 images."
    )
    assert lines[4:] == [
        "| fp32 | 2.000 | 1.00× (0.99–1.01) | 0.9345 | 0.00 | – |",
        "| int8 | 1.000 | 2.00× (1.90–2.10) | 0.9340 | 0.05 | on the CPU: 3 QuantizeLinear |",
        r"| fp8 | not run | not run | not run | not run | no \| kernel |",
    ]
    assert {line.replace(r"\|", "").count("|") for line in lines[2:]} == {7}
