"""Convolutions and pooling over one to three axes of positions; [B, C, …] as shapes say, any memory format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.operators.operator import Unsupported, operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
Sizes = tuple[int, ...]


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Convolve x [B, C, …] with weights [O, C / group, …]."""
    axes = _axes(x)
    steps, spread = strides or (1,) * axes, dilations or (1,) * axes
    before, after = _padding(x, weight.shape[2:], steps, spread, pads, auto_pad)
    if before != after:
        x, before = F.pad(x, _for_torch(before, after)), (0,) * axes
    return _CONV[axes](x, weight, bias, steps, before, spread, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Spread x [B, C, …] with weights [C, O / group, …]; pads are cut off the result."""
    if auto_pad not in ("NOTSET", "VALID") or output_shape:
        raise Unsupported("a result's size given by auto_pad or output_shape", "pads and output_padding")
    axes = _axes(x)
    cut, extra = pads or (0,) * 2 * axes, output_padding or (0,) * axes
    before, after = cut[:axes], cut[axes:]
    steps, spread = strides or (1,) * axes, dilations or (1,) * axes
    if before == after:
        return _CONV_TRANSPOSE[axes](x, weight, bias, steps, before, extra, group, spread)
    full = _CONV_TRANSPOSE[axes](x, weight, bias, steps, 0, extra, group, spread)
    return F.pad(full, _for_torch([-one for one in before], [-one for one in after]))


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    storage_order: int = 0,
    strides: Sizes | None = None,
) -> Tensor:
    """Return the largest element of each window; what is padded never is."""
    axes = _axes(x)
    steps, spread = strides or (1,) * axes, dilations or (1,) * axes
    before, after = _padding(x, kernel_shape, steps, spread, pads, auto_pad)
    if not _fits(before, after, kernel_shape):
        _refuse_ceil(ceil_mode)
        x, before = F.pad(x, _for_torch(before, after), value=-math.inf), (0,) * axes
    made: Tensor = _MAX_POOL[axes](x, kernel_shape, steps, before, spread, bool(ceil_mode))
    return made


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sizes | None = None,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Return the mean of each window, with padded zeros counted or not."""
    axes = _axes(x)
    if dilations and set(dilations) != {1}:
        raise Unsupported(f"dilations={dilations}", "dilations of 1")
    steps, pool = strides or (1,) * axes, _AVERAGE_POOL[axes]
    before, after = _padding(x, kernel_shape, steps, (1,) * axes, pads, auto_pad)
    if _fits(before, after, kernel_shape):
        made: Tensor = pool(x, kernel_shape, steps, before, bool(ceil_mode), bool(count_include_pad))
        return made
    _refuse_ceil(ceil_mode)
    both = _for_torch(before, after)
    total: Tensor = pool(F.pad(x, both), kernel_shape, steps)
    if count_include_pad:
        return total
    counted: Tensor = pool(F.pad(torch.ones_like(x[:1, :1]), both), kernel_shape, steps)
    return total / counted


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Return the mean over all positions, their axes kept."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """Return the maximum over all positions, their axes kept."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _axes(x: Tensor) -> int:
    axes = x.ndim - 2
    if axes not in _CONV:
        raise Unsupported(f"{axes} axes of positions", "one to three")
    return axes


def _padding(
    x: Tensor, kernel: Sequence[int], strides: Sizes, dilations: Sizes, pads: Sizes | None, auto_pad: str
) -> tuple[Sizes, Sizes]:
    """What is added before and behind each axis of positions.

    SAME makes ceil(size / stride) results; an odd one is added behind (UPPER) or before (LOWER).
    """
    axes = len(strides)
    if auto_pad in ("NOTSET", ""):
        given = pads or (0,) * 2 * axes
        return tuple(given[:axes]), tuple(given[axes:])
    if auto_pad == "VALID":
        return (0,) * axes, (0,) * axes
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad={auto_pad!r}", "NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    totals = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    smaller, larger = tuple(one // 2 for one in totals), tuple(one - one // 2 for one in totals)
    return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)


def _fits(before: Sizes, after: Sizes, kernel: Sizes) -> bool:
    """Whether torch's pooling can pad itself: alike on both sides, by half a window at most."""
    return before == after and all(2 * one <= width for one, width in zip(before, kernel, strict=True))


def _refuse_ceil(ceil_mode: int) -> None:
    if ceil_mode:
        raise Unsupported(
            "ceil_mode=1 with pads of different or large size", "equal pads up to half a window"
        )


def _for_torch(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads by axis → in torch's order, the last axis first."""
    return [one for pair in zip(reversed(before), reversed(after), strict=True) for one in pair]
