"""What every kernel for `Linear` reads off a node: the parts of its epilogue, and how the residual lies on the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, Tensors
from vitesse.backends.torch_cuda.steps import E4M3


class Operands(NamedTuple):
    """The tensors of a `Linear` node by name; see steps.linear."""

    x: Tensor
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    residual: Tensor | None

    @classmethod
    def of(cls, tensors: Tensors) -> Operands:
        """Name them; trailing ones that are left out are None.

        Raises:
            ValueError: no x or no weight.
        """
        x, weight, scale, bias, residual = (*tensors, None, None, None)[:5]
        if x is None or weight is None:
            raise ValueError("a Linear step without its input or its weight")
        return cls(x, weight, scale, bias, residual)

    @property
    def m(self) -> int:
        """Rows: everything of x but its last axis."""
        return math.prod(self.x.shape[:-1])

    @property
    def k(self) -> int:
        """Length of the sums."""
        return int(self.weight.shape[0])

    @property
    def n(self) -> int:
        """Columns of the output."""
        return int(self.weight.shape[1])


@dataclass(frozen=True)
class Epilogue:
    """What follows the sum, as the attributes of a `Linear` or `Conv` step say.

    Args:
        dtype: of the output: E4M3 where out_scale is above 0.
        out_scale: what the output is divided by; 0 where it is not quantised.
    """

    activation: str
    residual_first: bool
    dtype: torch.dtype
    out_scale: float

    @classmethod
    def of(cls, attributes: Attributes) -> Epilogue:
        """Read it, with the defaults of steps.linear."""
        out_scale = float(attributes.get("out_scale", 0.0))
        dtype = E4M3 if out_scale > 0 else getattr(torch, attributes.get("out_dtype", "float16"))
        first = bool(attributes.get("residual_first", 0))
        return cls(attributes.get("activation", ""), first, dtype, out_scale)


def rows_of(residual: Tensor | None, n: int) -> Tensor | None:
    """Return the residual [..., N] as rows [R, N]: R = M, or fewer where the batch shares them."""
    return None if residual is None else residual.reshape(-1, n)
