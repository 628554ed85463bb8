"""A step `Linear` as a value, and what the rules ask of the tensors around it: static shapes, types, wide numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    AttributeValue,
    attribute,
    constant,
    given,
    lengths,
    needed,
    put_step,
)
from vitesse.backends.torch_cuda.rewrite.reasons import LeftAlone
from vitesse.errors import ModelError

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """Inputs and attributes of one `Linear`, under the names of `steps.linear`."""

    x: ir.Value
    weight: ir.Value
    scale: ir.Value | None = None
    bias: ir.Value | None = None
    residual: ir.Value | None = None
    activation: str = ""
    residual_first: int = 0
    out_dtype: str = "float16"
    out_scale: float = 0.0

    @classmethod
    def of(cls, node: ir.Node) -> Layer:
        """Read a node of the graph."""
        return cls(
            x=needed(node, 0),
            weight=needed(node, 1),
            scale=given(node, 2),
            bias=given(node, 3),
            residual=given(node, 4),
            activation=str(attribute(node, "activation", "")),
            residual_first=int(attribute(node, "residual_first", 0)),
            out_dtype=str(attribute(node, "out_dtype", "float16")),
            out_scale=float(attribute(node, "out_scale", 0.0)),
        )

    @property
    def inputs(self) -> tuple[ir.Value | None, ...]:
        """In the order of the step's function."""
        return self.x, self.weight, self.scale, self.bias, self.residual

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """By the keywords of the step's function."""
        return {
            "activation": self.activation,
            "residual_first": self.residual_first,
            "out_dtype": self.out_dtype,
            "out_scale": self.out_scale,
        }

    @property
    def width(self) -> int:
        """How many channels it makes."""
        return shape_of(self.weight)[1]

    def put(self, model: ir.Model, replaced: Sequence[ir.Node]) -> ir.Node:
        """Write the step in the place of a chain of nodes, of which the first gives the name and the module."""
        return put_step(model, "Linear", self.inputs, self.attributes, replaced)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """A static shape; raises ModelError where it is not, for the rules stand behind `specialise`."""
    shape = lengths(value)
    if shape is None:
        raise ModelError(
            f"the shape of {value.name!r} is {value.shape}",
            expected="static shapes",
            cause="the graph was not specialised to one set of input shapes",
        )
    return shape


def float_of(value: ir.Value) -> str:
    """torch's name of the type of a floating-point tensor of 16 or 32 bits; raises LeftAlone for others."""
    if value.dtype not in FLOATS:
        raise LeftAlone(f"a tensor is {value.dtype}, not floating point of 16 or 32 bits")
    return FLOATS[value.dtype]


def dtype_named(name: str) -> np.dtype[Any]:
    """numpy's type of a name in `out_dtype`."""
    return next(dtype.numpy() for dtype, known in FLOATS.items() if dtype is not None and known == name)


def number(value: ir.Value | None) -> float | None:
    """The number of a constant with a single element, or None."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def wide(array: Array) -> NDArray[np.float64]:
    """The same numbers in float64, also those of E4M3 and bfloat16."""
    return array.astype(np.float32).astype(np.float64)


def without_batch(array: Array) -> Array:
    """Drop leading axes of length 1, and those along which nothing changes: what an Expand over the batch left."""
    while array.ndim > 1 and array.shape[0] > 0 and (array.shape[0] == 1 or bool((array == array[:1]).all())):
        array = array[0]
    return array
