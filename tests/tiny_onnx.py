"""ONNX models of a few nodes, with the numpy arithmetic beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitesse.artifact import Artifact, Provenance
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

FEATURES, CLASSES = 6, 3
SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "logits"}, Preprocessing((2, 3)))


def weights(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrix (6, 3) and the bias (3,) of `linear`."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        rng.standard_normal(CLASSES).astype(np.float32),
    )


def linear(folder: Path, name: str = "linear", *, seed: int = 0) -> Artifact:
    """logits = relu(x @ w + b); total = sum of logits over classes; x is float32 (N, 6)."""
    matrix, bias = weights(seed)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="/head/MatMul"),
        helper.make_node("Add", ["product", "b"], ["sum"], name="/head/Add"),
        helper.make_node("Relu", ["sum"], ["logits"], name="/head/Relu"),
        helper.make_node("ReduceSum", ["logits", "axes"], ["total"], name="/total", keepdims=0),
    ]
    constants = {"w": matrix, "b": bias, "axes": np.array([1], np.int64)}
    return save(
        folder / f"{name}.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["N"]),
        ],
        constants,
    )


def linear_in_numpy(x: NDArray[np.float32], *, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """What `linear` computes, in float64."""
    matrix, bias = weights(seed)
    logits = np.maximum(x.astype(np.float64) @ matrix.astype(np.float64) + bias, 0)
    return {"logits": logits, "total": logits.sum(axis=1)}


def unknown_operator(folder: Path) -> Artifact:
    """One node of an operator that no runtime has: Frobnicate, of the domain com.example."""
    node = helper.make_node("Frobnicate", ["x"], ["logits"], name="/body/odd_one", domain="com.example")
    return save(
        folder / "unknown.onnx",
        [node],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", FEATURES])],
        {},
        domains=("com.example",),
    )


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, NDArray[np.generic]],
    *,
    opset: int = 17,
    domains: tuple[str, ...] = (),
) -> Artifact:
    """Write a model and return it as an artifact."""
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content = model.SerializeToString()
    path.write_bytes(content)
    return as_artifact(path)


def as_artifact(path: Path) -> Artifact:
    """Wrap any file as an artifact."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Artifact(path, digest, len(content), SPEC, Provenance("source"))
