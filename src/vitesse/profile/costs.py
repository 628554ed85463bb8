"""What a graph costs by its shapes: floating-point operations, bytes moved, parameters, per node.

One multiplication with its addition is two operations, as in vendors' figures for processors; papers often give
multiply-adds, which is half. An operator on single numbers costs what its textbook formula does, each
+ − × ÷ max, exp, erf and root counted as one (`PER_ELEMENT`); moving numbers costs bytes but no operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir

from vitesse.errors import DataError, ModelError
from vitesse.fusion.shapes import complete_shapes, infer_shapes
from vitesse.profile.flops import Shape, flops_of

# Weights reach an operator through these; what is quantised, cast or turned is still one parameter per number.
_CARRIERS = frozenset(
    {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}
)
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})


@dataclass(frozen=True)
class Cost:
    """Cost of one node or of many.

    Args:
        flops: operations of one call.
        weight_bytes: bytes of constants as stored, read once per call.
        moved_bytes: bytes of computed tensors read and written.
        parameters: trained numbers; one that several nodes read is counted with the first.
        unknown: nodes that are not in `flops`, because a shape is only known at run time.
    """

    flops: float = 0.0
    weight_bytes: int = 0
    moved_bytes: int = 0
    parameters: int = 0
    unknown: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.moved_bytes + other.moved_bytes,
            self.parameters + other.parameters,
            self.unknown + other.unknown,
        )


def costs_of(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> tuple[Cost, ...]:
    """Return the cost of every node of the main graph, in its order, for inputs of these shapes.

    Args:
        inputs: graph input name → shape, batch first.

    Raises:
        DataError: an input is missing, or has another number of axes.
        ModelError: the graph cannot be read.
    """
    try:
        graph = ir.from_proto(model)
    except Exception as error:  # onnx_ir raises several types
        raise ModelError(
            f"cannot read the graph: {error}", fix="run onnx.checker.check_model on it for the details"
        ) from error
    _bind(graph, inputs)
    infer_shapes(graph)
    complete_shapes(graph)
    counted: set[str] = set()
    return tuple(_cost(node, counted) for node in graph.graph)


def total(costs: Sequence[Cost]) -> Cost:
    """Sum the costs of many nodes."""
    return sum(costs, Cost())


def _bind(graph: ir.Model, inputs: Mapping[str, Sequence[int]]) -> None:
    for value in graph.graph.inputs:
        if value.name in graph.graph.initializers:
            continue
        shape = inputs.get(value.name or "")
        if shape is None or (value.shape is not None and len(shape) != len(value.shape)):
            raise DataError(
                f"no shape for the input {value.name!r}: {None if shape is None else tuple(shape)}",
                expected=f"as many axes as {value.shape}",
            )
        value.shape = ir.Shape(shape)
    for value in graph.graph.outputs:
        value.shape = None  # declared with the axes that are now bound


def _cost(node: ir.Node, counted: set[str]) -> Cost:
    weights = [
        value
        for at, value in enumerate(node.inputs)
        if value is not None and value.name not in counted and _is_stored(value)
    ]
    counted.update(value.name or "" for value in weights)
    parameters = sum(_size(value) for value in weights if _is_parameter(node, value))
    stored = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    moved = [v for v in (*node.inputs, *node.outputs) if v is not None and not _is_constant(v)]
    flops = 0.0 if _is_constant(node.outputs[0]) else flops_of(node, _shape)
    return Cost(flops or 0.0, stored, sum(map(_bytes, moved)), parameters, int(flops is None))


def _is_stored(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _is_constant(value: ir.Value) -> bool:
    """Whether a tensor is the same in every call: stored, or a stored one that was only converted."""
    if _is_stored(value):
        return True
    node = value.producer()
    if node is None:
        return False
    return node.op_type == "Constant" or (
        node.op_type in _CARRIERS and all(one is None or _is_constant(one) for one in node.inputs)
    )


def _is_parameter(node: ir.Node, value: ir.Value) -> bool:
    """A trained number is a float, or what is dequantised; scales, shapes and single numbers are not."""
    if node.op_type in _QUANTISERS:
        return node.op_type == "DequantizeLinear" and value is node.inputs[0] and _size(value) > 1
    return value.dtype is not None and value.dtype.name in _FLOATS and _size(value) > 1


def _shape(value: ir.Value | None) -> Shape | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def _size(value: ir.Value) -> int:
    shape = _shape(value)
    return 0 if shape is None else prod(shape)


def _bytes(value: ir.Value) -> int:
    return 0 if value.dtype is None else int(_size(value) * value.dtype.itemsize)
