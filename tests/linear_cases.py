"""Nodes of the fused step `Linear` and the answers that float64 gives for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
# Of the norm: what rounding once (torch.linear: twice) to the output's type costs, and float32 sums.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3, E4M3: 4e-2}

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


@dataclass(frozen=True)
class Case:
    """One node: its tensors in order, its attributes, and y in float64, divided by out_scale where it has one."""

    tensors: list[Tensor | None]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> Tensor:
        x, weight, scale, bias, residual = (
            None if one is None else one.double().cpu() for one in self.tensors
        )
        assert x is not None and weight is not None
        y = x @ weight
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
        act = ACTIVATIONS[self.attributes.get("activation", "")]
        if residual is not None and self.attributes.get("residual_first", 0):
            y = act(y + residual)
        else:
            y = act(y) if residual is None else act(y) + residual
        out_scale = self.attributes.get("out_scale", 0.0)
        return (y / out_scale).clamp(-448, 448) if out_scale else y


def case(
    shape: tuple[int, ...],
    n: int,
    *,
    dtype: torch.dtype = torch.float16,
    scale: int | None = None,
    bias: bool = True,
    residual: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **attributes: Any,
) -> Case:
    """A random node: x of a shape, N columns, a scale of 1 or N numbers, a residual of a shape."""
    made = torch.Generator().manual_seed(seed)
    k = shape[-1]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=made)

    tensors = [
        normal(*shape).to(dtype),
        (normal(k, n) * (1 if dtype == E4M3 else k**-0.5)).to(dtype),
        None if scale is None else (torch.rand(scale, generator=made) + 0.5) * k**-0.5,
        normal(n).to(torch.float16 if dtype == E4M3 else dtype) if bias else None,
        None if residual is None else normal(*residual).to(torch.float16 if dtype == E4M3 else dtype),
    ]
    return Case([None if one is None else one.to(device) for one in tensors], attributes)


def error(made: Tensor, expected: Tensor) -> float:
    """‖made − expected‖ / ‖expected‖; NaN counts as infinite."""
    found = float((made.double().cpu() - expected).norm() / expected.norm())
    return math.inf if math.isnan(found) else found
