"""What is particular to OpenVINO: batch 1 in static shapes, float32 kept, attention between quantised layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tiny_onnx import FEATURES, linear, linear_in_numpy, save
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import LoadOptions
from vitesse.errors import BackendError

pytest.importorskip("openvino")
from vitesse.backends.openvino import OpenVinoBackend

ONE_THREAD = LoadOptions(threads=1)


def rounded(folder: Path) -> Artifact:
    """logits = relu(Q/DQ(x) @ w): steps of 1/64 around 0."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["logits"]),
    ]
    constants = {
        "scale": np.array(1 / 64, np.float32),
        "zero": np.array(128, np.uint8),
        "w": np.eye(FEATURES, dtype=np.float32),
    }
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", FEATURES])]
    return save(folder / "rounded.onnx", nodes, inputs, outputs, constants)


def test_batch_one_is_compiled_at_once_and_the_general_model_on_demand(tmp_path: Path) -> None:
    with OpenVinoBackend().load(linear(tmp_path), ONE_THREAD) as engine, engine.session() as session:
        assert engine.special_shapes == ((1, FEATURES),)
        assert engine.compiled(special=True) is not None
        for size in (1, 2):
            x = np.full((size, FEATURES), 0.5, np.float32)
            logits = session.run({"x": x}).outputs["logits"]
            np.testing.assert_allclose(logits, linear_in_numpy(x)["logits"], rtol=1e-5)


def test_a_graph_that_does_not_take_batch_one_is_compiled_as_it_is(tmp_path: Path) -> None:
    """Two rows of y are fixed, so that x must have two as well."""
    nodes = [helper.make_node("Concat", ["x", "y"], ["z"], axis=1)]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3]),
    ]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    artifact = save(tmp_path / "two.onnx", nodes, inputs, outputs, {})
    with OpenVinoBackend().load(artifact, ONE_THREAD) as engine, engine.session() as session:
        assert engine.special_shapes is None
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        z = session.run({"x": rows, "y": rows}).outputs["z"]
    np.testing.assert_array_equal(z, np.concatenate([rows, rows], axis=1))


def test_attention_kernels_are_off_only_where_something_is_quantised(tmp_path: Path) -> None:
    with OpenVinoBackend().load(linear(tmp_path), ONE_THREAD) as engine:
        assert "SNIPPETS_MODE" not in engine.config
    with OpenVinoBackend().load(rounded(tmp_path), ONE_THREAD) as engine, engine.session() as session:
        assert engine.config["SNIPPETS_MODE"] == "DISABLE"
        x = np.linspace(-3, 3, FEATURES, dtype=np.float32)[None]
        logits = session.run({"x": x}).outputs["logits"]
    grid = (np.clip(np.rint(x * 64) + 128, 0, 255) - 128) / 64
    np.testing.assert_allclose(logits, np.maximum(grid, 0), atol=1e-6)


def test_float32_is_asked_for_and_threads_cover_all_sessions(tmp_path: Path) -> None:
    with OpenVinoBackend().load(linear(tmp_path), LoadOptions(threads=1, sessions=2)) as engine:
        assert engine.config["INFERENCE_PRECISION_HINT"] == "f32"
        assert (engine.config["NUM_STREAMS"], engine.config["INFERENCE_NUM_THREADS"]) == (2, 2)
    with OpenVinoBackend().load(linear(tmp_path), LoadOptions(plain=True)) as engine:
        assert engine.config == {}


def test_it_is_no_numerical_reference(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        OpenVinoBackend().load(linear(tmp_path), LoadOptions(reference=True))
    assert caught.value.what == "OpenVINO cannot switch its graph optimisations off"
    assert "onnxruntime" in caught.value.fix


def test_building_keeps_the_file_and_its_hash(tmp_path: Path) -> None:
    artifact = linear(tmp_path)
    built = OpenVinoBackend().build(artifact, Store(tmp_path / "artifacts")).artifact
    assert (built.path, built.sha256, built.backend) == (artifact.path, artifact.sha256, "openvino")
