"""Small graphs for tests of fusing, written in ONNX's text syntax, and a run with the runtime's optimiser off."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def graph(
    body: str,
    inputs: str = "float[N,5,8] x",
    outputs: str = "float[N,5,8] y",
    opset: int = 17,
    *,
    check: bool = True,
    **constants: Any,
) -> onnx.ModelProto:
    """A model, checked unless told not to; `constants` become initialisers (Python floats float32 scalars)."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        array = np.asarray(value, dtype=np.float32) if isinstance(value, float) else np.asarray(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    if check:
        onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: Arrays) -> list[NDArray[Any]]:
    """All outputs, computed by ONNX Runtime as the graph is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(array) for array in session.run(None, feeds)]


def ops(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(node.op_type for node in model.graph.node)


def normal(*shape: int, seed: int = 0, offset: float = 0.0) -> NDArray[np.float32]:
    """Standard normal numbers around `offset`."""
    return (np.random.default_rng(seed).standard_normal(shape) + offset).astype(np.float32)
