"""Constant folding: whatever does not depend on the image becomes an initialiser, unless the file would swell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript.optimizer import fold_constants_ir

from vitesse.fusion.opset import opset_of, quiet
from vitesse.fusion.rules import constant

# A position encoding of the finest level of a DETR at 800×1333 has 100·167·256 = 4.3 million elements.
_LARGEST_RESULT = 8 * 2**20
_MODEST_RESULT = 2**18
_GROWTH_BYTES, _GROWTH_SHARE = 32 * 2**20, 0.10
_UNLIMITED = 2**62
# Pure Python loops in onnx's reference implementation, or several outputs: ONNX Runtime evaluates these.
_BY_RUNTIME = frozenset(
    {"Resize", "Conv", "ConvTranspose", "GridSample", "Einsum", "AveragePool", "Split", "LayerNormalization"}
)
_SWELLING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "OneHot"})


def fold(model: ir.Model) -> tuple[ir.Model, int, tuple[str, ...]]:
    """Fold constants; shapes must have been inferred.

    Returns:
        (the folded model, how many nodes that took away, why something was left unfolded).
    """
    folded = _folded(model, _LARGEST_RESULT)
    allowed = max(_GROWTH_BYTES, _GROWTH_SHARE * weight_bytes(model))
    growth = weight_bytes(folded) - weight_bytes(model)
    reasons: tuple[str, ...] = ()
    if growth > allowed:
        reasons = (f"folding everything would add {growth / 1e6:.0f} MB, {allowed / 1e6:.0f} MB are allowed",)
        folded = _folded(model, _MODEST_RESULT)
    return folded, len(model.graph) - len(folded.graph), reasons


def lift_constants(model: ir.Model) -> None:
    """Turn Constant nodes into initialisers of the same name, in place."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def weight_bytes(model: ir.Model) -> int:
    """Size of all initialisers of the main graph, in bytes."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _folded(model: ir.Model, largest: int) -> ir.Model:
    copy = model.clone()  # shares the tensors

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type in _BY_RUNTIME:
            return False
        if node.op_type in _SWELLING:
            return _result_size(node) <= largest
        return None

    with quiet("onnxscript.optimizer"):
        fold_constants_ir(
            copy, input_size_limit=_UNLIMITED, output_size_limit=largest, should_fold=should_fold
        )
    lift_constants(copy)
    for node in list(copy.graph):
        if node.op_type in _BY_RUNTIME and node.domain == "" and _result_size(node) <= largest:
            _replace_by_values(copy, node)
    _make_contiguous(copy)
    return copy


def _make_contiguous(model: ir.Model) -> None:
    """A folded Transpose is a strided view, which the pass that hashes initialisers refuses."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.Tensor):
            array = value.const_value.numpy()
            if not array.flags.c_contiguous:
                value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


def _result_size(node: ir.Node) -> float:
    """Number of elements the node puts out; infinite where that is not known beforehand."""
    total = 0.0
    for value in node.outputs:
        if value.shape is None or not value.shape.is_static():
            return math.inf
        total += math.prod(value.shape.numpy())
    return total


def _replace_by_values(model: ir.Model, node: ir.Node) -> None:
    inputs = {value.name or "": constant(value) for value in node.inputs if value is not None}
    if not inputs or any(array is None for array in inputs.values()):
        return
    arrays = {name: array for name, array in inputs.items() if array is not None}
    for output, array in zip(node.outputs, evaluate(node, arrays, opset_of(model)), strict=True):
        name = output.name
        assert name is not None
        lifted = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        lifted.shape, lifted.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        if output.is_graph_output():
            return
        output.name = None
        model.graph.register_initializer(lifted)
        output.replace_all_uses_with(lifted)
    model.graph.remove(node, safe=True)


def evaluate(node: ir.Node, inputs: dict[str, NDArray[Any]], opset: int) -> list[NDArray[Any]]:
    """Run one node in ONNX Runtime; `inputs` by the names the node reads."""
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "constant",
        [
            onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [onnx.ValueInfoProto(name=value.name or "") for value in node.outputs],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    proto = onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=onnx.helper.find_min_ir_version_for(opsets)
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, inputs)]
