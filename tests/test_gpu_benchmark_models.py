"""The models of the GPU benchmark, tiny and on the CPU: their graphs against their modules, and their accuracy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from gpu_benchmark import gpu_module

torch = pytest.importorskip("torch", reason="the benchmark's models and peers are torch modules")
pytestmark = pytest.mark.usefixtures("operators_listed_once")


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


def test_accuracy_counts_labelled_images_in_every_precision(tmp_path: Path) -> None:
    accuracy = gpu_module("accuracy")
    found = accuracy.measure(accuracy.EXAMPLES / "vit", tmp_path, "onnxruntime")
    assert found["images"] == 500
    assert found["loss_points"]["fp32"] == 0
    assert set(found["top1"]) == {"fp32", "fp16", "fp8"}
    assert all(abs(loss) < 1 for loss in found["loss_points"].values())
