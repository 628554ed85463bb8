"""Small ONNX models with fixed random weights: a detector in the manner of DETR, and a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitesse.spec import Decode, ModelSpec, Preprocessing, Task, spec_from_mapping

SIDE, QUERIES, CLASSES, WIDTH = 32, 64, 4, 16


def detector() -> onnx.ModelProto:
    """images [N, 3, 32, 32] → logits [N, 64, classes + 1], boxes [N, 64, 4] cxcywh in 0..1."""
    weights = _weights(
        stem=(WIDTH, 3, 4, 4), mix=(WIDTH, WIDTH), to_logits=(WIDTH, CLASSES + 1), to_boxes=(WIDTH, 4)
    )
    weights["shape"] = numpy_helper.from_array(np.array([0, WIDTH, QUERIES], np.int64), "shape")
    nodes = [
        helper.make_node("Conv", ["images", "stem"], ["stem_out"], "stem", strides=[4, 4]),
        helper.make_node("Relu", ["stem_out"], ["features"], "relu"),
        helper.make_node("Reshape", ["features", "shape"], ["grid"], "grid"),
        helper.make_node("Transpose", ["grid"], ["tokens"], "tokens", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "mix"], ["mixed"], "mix"),
        helper.make_node("Tanh", ["mixed"], ["hidden"], "tanh"),
        helper.make_node("MatMul", ["hidden", "to_logits"], ["logits"], "class_head"),
        helper.make_node("MatMul", ["hidden", "to_boxes"], ["raw_boxes"], "box_head"),
        helper.make_node("Sigmoid", ["raw_boxes"], ["boxes"], "sigmoid"),
    ]
    outputs = [_float("logits", ["N", QUERIES, CLASSES + 1]), _float("boxes", ["N", QUERIES, 4])]
    return _model(nodes, [_float("images", ["N", 3, SIDE, SIDE])], outputs, weights)


def classifier() -> onnx.ModelProto:
    """images [N, 3, 32, 32] → logits [N, classes]."""
    weights = _weights(stem=(WIDTH, 3, 4, 4), mix=(WIDTH, WIDTH), head=(WIDTH, CLASSES))
    nodes = [
        helper.make_node("Conv", ["images", "stem"], ["stem_out"], "stem", strides=[4, 4]),
        helper.make_node("Relu", ["stem_out"], ["features"], "relu"),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "mix"], ["mixed"], "mix"),
        helper.make_node("Tanh", ["mixed"], ["hidden"], "tanh"),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"], "head"),
    ]
    return _model(
        nodes, [_float("images", ["N", 3, SIDE, SIDE])], [_float("logits", ["N", CLASSES])], weights
    )


def detector_spec(**changes: object) -> ModelSpec:
    """The spec of `detector()`; `changes` replace fields."""
    return _spec(Task.DETECTION, Decode.DETR_SOFTMAX, {"logits": "logits", "boxes": "boxes"}, changes)


def classifier_spec(**changes: object) -> ModelSpec:
    """The spec of `classifier()`; `changes` replace fields."""
    return _spec(Task.CLASSIFICATION, Decode.LOGITS, {"logits": "logits"}, changes)


def postprocessed_spec(**changes: object) -> ModelSpec:
    """A spec for outputs labels, boxes, scores."""
    roles = {"labels": "labels", "boxes": "boxes", "scores": "scores"}
    return _spec(Task.DETECTION, Decode.POSTPROCESSED, roles, changes)


def pictures(count: int, seed: int = 7) -> list[dict[str, NDArray[np.float32]]]:
    """Feeds of smooth random images, all different."""
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(count, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    fine = random.normal(size=(count, 3, SIDE, SIDE))
    tint = 2 * random.normal(size=(count, 3, 1, 1))
    return [{"images": (tint[i] + coarse[i] + 0.5 * fine[i])[None].astype(np.float32)} for i in range(count)]


def runner(model: onnx.ModelProto) -> Callable[[Mapping[str, object]], dict[str, NDArray[np.generic]]]:
    """A function feeds → outputs, in ONNX Runtime on one thread with optimisations off."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    return next(entry for entry in model.graph.node if entry.name == name)


def weight(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    """The value of a weight."""
    return numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == name))


def set_weight(model: onnx.ModelProto, name: str, value: NDArray[np.generic]) -> None:
    """Replace the value of a weight, or add one."""
    kept = [w for w in model.graph.initializer if w.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])


def insert_after(
    model: onnx.ModelProto, tensor: str, operator: str, *others: str, **attributes: object
) -> None:
    """Put an operator between the maker of `tensor` and everything that reads it."""
    index = next(i for i, entry in enumerate(model.graph.node) if tensor in entry.output)
    maker = model.graph.node[index]
    used = {name for entry in model.graph.node for name in entry.output}
    hidden = f"{tensor}_before"
    while hidden in used:
        hidden += "_before"
    maker.output[list(maker.output).index(tensor)] = hidden
    added = helper.make_node(
        operator, [hidden, *others], [tensor], f"{tensor}_{operator.lower()}", **attributes
    )
    model.graph.node.insert(index + 1, added)


def _weights(**shapes: tuple[int, ...]) -> dict[str, onnx.TensorProto]:
    random = np.random.default_rng(3)
    weights = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        value = 1.5 * random.normal(size=shape) / np.sqrt(fan_in)
        weights[name] = numpy_helper.from_array(value.astype(np.float32), name)
    return weights


def _float(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: Mapping[str, onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(weights.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return model


def _spec(task: Task, decode: Decode, outputs: Mapping[str, str], changes: Mapping[str, object]) -> ModelSpec:
    raw: dict[str, object] = {
        "task": task,
        "decode": decode,
        "image_input": "images",
        "outputs": outputs,
        "preprocessing": {"size": (SIDE, SIDE)},
        "labels": tuple("abcd"),
    }
    spec = spec_from_mapping({**raw, **changes})
    assert isinstance(spec.preprocessing, Preprocessing)
    return spec
