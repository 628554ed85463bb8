"""Convolutions for the tests: random tensors between NaN, and their outputs in float64, apart from steps.conv."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.torch_cuda.kernels.float64 import Array, numbers

E4M3 = torch.float8_e4m3fn
# Two roundings of the output's type at most; E4M3 is compared by steps of its grid.
TOLERANCES = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 1e-6}
NUMPY_ACTIVATIONS = {
    "": lambda y: y,
    "relu": lambda y: np.maximum(y, 0.0),
    "silu": lambda y: y / (1.0 + np.exp(-y)),
    "sigmoid": lambda y: 1.0 / (1.0 + np.exp(-y)),
    "gelu": lambda y: y * 0.5 * (1.0 + np.vectorize(math.erf)(y / math.sqrt(2.0))),
    "gelu_tanh": lambda y: 0.5 * y * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3))),
}


@dataclass(frozen=True)
class Shape:
    """A convolution: images, channels, height, width, filters, and how they are laid on the image."""

    images: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1


@dataclass(frozen=True)
class Case:
    """The tensors of a step, its attributes, and its output in float64."""

    tensors: tuple[Tensor | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    expected: Array = field(default_factory=lambda: np.empty(0))


def case(
    shape: Shape,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float16,
    image_dtype: torch.dtype | None = None,
    scaled: int = 0,
    biased: bool = True,
    residual: bool = False,
    seed: int = 0,
    **attributes: Any,
) -> Case:
    """Make one; `scaled`: how many scales (1 or all filters), `attributes`: activation, residual_first, out_scale, …"""
    random = torch.Generator().manual_seed(seed)
    made = [shape.images, shape.channels, shape.height, shape.width]
    x = between_nan(torch.randn(made, generator=random).to(image_dtype or dtype).to(device))
    inner = shape.channels // shape.group
    values = torch.randn(shape.filters, inner, *shape.kernel, generator=random)
    weight = (
        (values / math.sqrt(inner * math.prod(shape.kernel)) * (8.0 if dtype == E4M3 else 1.0))
        .to(dtype)
        .to(device)
    )
    scale = (torch.rand(scaled, generator=random) + 0.5).to(device) if scaled else None
    bias = torch.randn(shape.filters, generator=random).to(device) if biased else None
    said = {
        **{name: getattr(shape, name) for name in ("strides", "pads", "dilations", "group")},
        **{"activation": "", "out_dtype": "float16" if dtype == E4M3 else str(dtype).removeprefix("torch.")},
        **attributes,
    }
    plain = convolved(numbers(x), numbers(weight), shape)
    z = None
    if residual:
        z = between_nan(torch.randn(plain.shape, generator=random).half().to(device))
    wide = plain if scale is None else plain * numbers(scale).reshape(1, -1, 1, 1)
    wide = wide if bias is None else wide + numbers(bias).reshape(1, -1, 1, 1)
    act = NUMPY_ACTIVATIONS[said["activation"]]
    if z is not None and said.get("residual_first", 1):
        wide = act(wide + numbers(z))
    else:
        wide = act(wide) + (0.0 if z is None else numbers(z))
    return Case((x, weight, scale, bias, z), said, wide)


def convolved(x: Array, weight: Array, shape: Shape) -> Array:
    """Tap by tap over a padded image, group by group."""
    (top, left, bottom, right), (down, across) = shape.pads, shape.dilations
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (padded.shape[2] - down * (shape.kernel[0] - 1) - 1) // shape.strides[0] + 1
    columns = (padded.shape[3] - across * (shape.kernel[1] - 1) - 1) // shape.strides[1] + 1
    out = np.zeros((len(x), shape.filters, rows, columns))
    inputs, outputs = shape.channels // shape.group, shape.filters // shape.group
    for group in range(shape.group):
        read = slice(group * inputs, (group + 1) * inputs)
        written = slice(group * outputs, (group + 1) * outputs)
        for y in range(shape.kernel[0]):
            for xx in range(shape.kernel[1]):
                seen = padded[:, read, y * down :: shape.strides[0], xx * across :: shape.strides[1]]
                seen = seen[:, :, :rows, :columns]
                out[:, written] += np.einsum("bchw,oc->bohw", seen, weight[written, :, y, xx])
    return out


def between_nan(x: Tensor) -> Tensor:
    """Return x channels_last in memory, with NaN before and behind it."""
    margin = 1024
    room = torch.full((x.numel() + 2 * margin,), torch.nan, device=x.device).to(x.dtype)
    _, channels, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    inside = room.as_strided(x.shape, strides, margin)
    return inside.copy_(x)


@contextmanager
def poisoned(monkeypatch: Any) -> Iterator[None]:
    """Let `torch.empty` give NaN, so that what a kernel leaves out is seen."""
    empty = torch.empty

    def filled(*given: Any, **keywords: Any) -> Tensor:
        made = empty(*given, **keywords)
        if made.dtype == E4M3:
            made.view(torch.uint8).fill_(0x7F)
            return made
        return made.fill_(torch.nan) if made.is_floating_point() and made.device.type != "meta" else made

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", filled)
        yield
