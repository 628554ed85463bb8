"""x [N, 4] times a weight of 4×4 in every precision that a TensorRT graph may have, as Q/DQ and casts write it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

_TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
PLACE = "/encoder/layers.0"


def product(kind: str, *, zero_point: int = 0, opset: int = 19) -> onnx.ModelProto:
    """Such as "fp16", "int8", "int8+fp16", "fp8+fp16"; "uint8" for CPUs only."""
    eight, _, half = kind.partition("+") if kind.startswith(("int8", "uint8", "fp8")) else ("", "", kind)
    real = _TYPES[half or "fp32"]
    weights = [helper.make_tensor("w", real, [4, 4], np.linspace(-1, 1, 16).tolist())]
    nodes = [_node("Cast", ["x"], "cast_in", to=real)]
    source = "cast_in"
    if eight:
        weights += [
            helper.make_tensor("scale", real, [], [0.5]),
            helper.make_tensor("zero", _TYPES[eight], [], [zero_point]),
        ]
        nodes += [
            _node("QuantizeLinear", [source, "scale", "zero"], "quantised"),
            _node("DequantizeLinear", ["quantised", "scale", "zero"], "dequantised"),
        ]
        source = "dequantised"
    nodes += [
        _node("MatMul", [source, "w"], "product"),
        _node("Cast", ["product"], "y", to=TensorProto.FLOAT),
    ]
    return model(nodes, weights, opset)


def model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto] | None = None, opset: int = 19
) -> onnx.ModelProto:
    """A graph x → y, both float32 [N, 4]."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("other", 1)]
    made = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, weights or []), opset_imports=opsets
    )
    made.ir_version = 10
    return made


def _node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], f"{PLACE}/{output}", **attributes)
