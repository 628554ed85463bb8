"""What all rewrites share: the rule for a single operator, and constants and lengths for what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from vitesse.fusion.rules import FusionRule, LeftAlone

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class OperatorRule(FusionRule):
    """A rule for one operator, all of whose inputs and attributes `prepare` looks at.

    An operator of which a second output is read does not match.
    """

    operator = ""

    def pattern(self, op: Any) -> Any:
        """The operator, whatever its inputs."""
        return getattr(op, self.operator)(_allow_other_inputs=True, _outputs=["result"])

    def plan(self, *, result: ir.Value) -> Any:
        """What `prepare` makes of the operator."""
        node = result.producer()
        assert node is not None
        return self.prepare(node)

    def prepare(self, node: ir.Node) -> Any:
        """Return what `build` needs; raises LeftAlone with the reason why not."""
        raise NotImplementedError


def given(node: ir.Node, place: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def required(node: ir.Node, place: int) -> ir.Value:
    """An input that the operator cannot be without."""
    value = given(node, place)
    assert value is not None
    return value


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def number(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    return float(node.attributes[name].as_float()) if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    """A string attribute."""
    return str(node.attributes[name].as_string()) if name in node.attributes else default


def float_type(value: ir.Value) -> ir.DataType:
    """The type of a floating-point tensor; raises LeftAlone for others and where it is not known."""
    if value.dtype is None or value.dtype not in FLOATS:
        raise LeftAlone(f"the input is {value.dtype or 'of unknown type'}, not floating point")
    return value.dtype


def rank_of(value: ir.Value) -> int:
    """Number of axes; raises LeftAlone where it is not known."""
    if value.shape is None:
        raise LeftAlone("the number of axes is not known")
    return len(value.shape)


def length_of(value: ir.Value, axis: int) -> int | None:
    """Length along an axis where it is static, else None."""
    length = None if value.shape is None else value.shape[axis]
    return length if isinstance(length, int) else None


def is_half(dtype: ir.DataType) -> bool:
    """Whether sums of squares overflow or lose digits in this type."""
    return dtype in _HALF


def numbers(op: Any, values: ArrayLike, dtype: ir.DataType) -> Any:
    """A constant of the given type."""
    return op.Constant(value=ir.tensor(np.asarray(values, np.float64).astype(dtype.numpy())))


def integers(op: Any, values: Sequence[int] | int) -> Any:
    """A constant of int64: axes, shapes, indices."""
    return op.Constant(value=ir.tensor(np.asarray(values, np.int64)))


def mean_over(op: Any, x: Any, axes: Sequence[int], version: int) -> Any:
    """Mean that keeps its axes; they turned from an attribute into an input in opset 18."""
    if version < 18:
        return op.ReduceMean(x, axes=list(axes), keepdims=1)
    return op.ReduceMean(x, integers(op, axes), keepdims=1)


def version(node: ir.Node) -> int:
    """Version of the default operator set the node is written in; raises LeftAlone inside an If or a Loop."""
    imports = {} if node.graph is None else node.graph.opset_imports
    if "" not in imports:
        raise LeftAlone("it is inside a subgraph")
    return int(imports[""])
