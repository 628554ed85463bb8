"""Small ONNX graphs for tests of plans: an MLP block with LayerNorm, in float32 or float16."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN, TOKENS = 16, 32, 7


def block(
    dtype: type[np.generic] = np.float32, *, rows: int | str = "batch", jump: bool = False
) -> onnx.ModelProto:
    """y = x + gelu(layernorm(x)·w1 + b1)·w2 + b2 over x [batch, 7, 16]; with `jump` also the largest 3 of y."""
    rng = np.random.default_rng(5)
    kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    constants: dict[str, NDArray[np.generic]] = {
        "scale": 1 + 0.1 * rng.standard_normal(WIDTH),
        "shift": 0.1 * rng.standard_normal(WIDTH),
        "w1": 0.3 * rng.standard_normal((WIDTH, HIDDEN)),
        "b1": 0.1 * rng.standard_normal(HIDDEN),
        "w2": 0.3 * rng.standard_normal((HIDDEN, WIDTH)),
        "b2": 0.1 * rng.standard_normal(WIDTH),
    }
    stored = [numpy_helper.from_array(array.astype(dtype), name) for name, array in constants.items()]
    nodes = [
        helper.make_node(
            "LayerNormalization", ["x", "scale", "shift"], ["n"], name="/block/norm/ln", axis=-1
        ),
        helper.make_node("MatMul", ["n", "w1"], ["p1"], name="/block/mlp/fc1/MatMul"),
        helper.make_node("Add", ["p1", "b1"], ["a1"], name="/block/mlp/fc1/Add"),
        helper.make_node("Gelu", ["a1"], ["g"], name="/block/mlp/act"),
        helper.make_node("MatMul", ["g", "w2"], ["p2"], name="/block/mlp/fc2/MatMul"),
        helper.make_node("Add", ["p2", "b2"], ["a2"], name="/block/mlp/fc2/Add"),
        helper.make_node("Add", ["a2", "x"], ["y"], name="/block/Add"),
    ]
    outputs = [helper.make_tensor_value_info("y", kind, [rows, TOKENS, WIDTH])]
    if jump:
        stored.append(numpy_helper.from_array(np.array([3], np.int64), "three"))
        nodes.append(helper.make_node("TopK", ["y", "three"], ["best", "where"], name="/top"))
        outputs += [
            helper.make_tensor_value_info("best", kind, [rows, TOKENS, 3]),
            helper.make_tensor_value_info("where", TensorProto.INT64, [rows, TOKENS, 3]),
        ]
    inputs = [helper.make_tensor_value_info("x", kind, [rows, TOKENS, WIDTH])]
    graph = helper.make_graph(nodes, "block", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
