"""The arithmetic that layer, group and RMS normalisation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.lowering.building import is_half, mean_over, numbers


@dataclass(frozen=True)
class Normalisation:
    """What is divided by what: (x − mean) / √(variance + ε) over `axes`, or without the mean.

    stash: compute in float32 where x has half precision, as `stash_type = 1` says.
    """

    axes: Sequence[int]
    epsilon: float
    dtype: ir.DataType
    version: int
    centred: bool = True
    stash: bool = True

    def write(self, op: Any, x: Any) -> Any:
        """Write it down; the result has the type of x."""
        widened = self.stash and is_half(self.dtype)
        dtype = ir.DataType.FLOAT if widened else self.dtype
        if widened:
            x = op.Cast(x, to=int(dtype))
        if self.centred:
            x = op.Sub(x, mean_over(op, x, self.axes, self.version))
        variance = mean_over(op, op.Mul(x, x), self.axes, self.version)
        y = op.Div(x, op.Sqrt(op.Add(variance, numbers(op, self.epsilon, dtype))))
        return op.Cast(y, to=int(self.dtype)) if widened else y
