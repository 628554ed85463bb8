"""The geometry of a convolution step: what every kernel for it reads off the shapes and attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Geometry:
    """Sizes of one convolution.

    Args:
        channels: of the whole input; a filter reads channels / group of them.
        pads: top, left, bottom, right, in pixels.
        out_height, out_width: rounded down, as ONNX has it.
    """

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    group: int
    out_height: int
    out_width: int

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Geometry:
        """Read it from a Conv step: x [B, C, H, W], weight [O, C / group, KH, KW], attributes with defaults."""
        x, weight = _given(tensors[0]), _given(tensors[1])
        batch, channels, height, width = x.shape
        strides = pair(attributes.get("strides", (1, 1)))
        dilations = pair(attributes.get("dilations", (1, 1)))
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        kernel = pair(weight.shape[2:])
        return cls(
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            filters=weight.shape[0],
            kernel=kernel,
            strides=strides,
            pads=(top, left, bottom, right),
            dilations=dilations,
            group=int(attributes.get("group", 1)),
            out_height=extent(height + top + bottom, kernel[0], strides[0], dilations[0]),
            out_width=extent(width + left + right, kernel[1], strides[1], dilations[1]),
        )

    @property
    def pixels(self) -> int:
        """How many pixels the output has in all images: the rows of the GEMM."""
        return self.batch * self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """How many pixels of the input a filter reads."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """Whether every pixel of the output is made of the same pixel of the input."""
        return self.taps == 1 and self.strides == (1, 1) and not any(self.pads)

    @property
    def symmetric(self) -> bool:
        """Whether left is padded as right is, and top as bottom."""
        return self.pads[:2] == self.pads[2:]

    def output(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate [B, O, H', W'], channels_last."""
        shape = (self.batch, self.filters, self.out_height, self.out_width)
        return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


def extent(padded: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how many windows fit along one axis of a padded input."""
    return (padded - dilation * (kernel - 1) - 1) // stride + 1


def channels_last(x: Tensor) -> Tensor:
    """Return x [B, C, H, W] with its channels adjacent in memory; itself where they are."""
    return x.contiguous(memory_format=torch.channels_last)


def epilogue_of(attributes: Mapping[str, Any]) -> Epilogue:
    """Read the epilogue of a Conv step, which adds its residual first unless told otherwise."""
    return Epilogue.of({"residual_first": 1, **attributes})


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a Conv step without its input or its weight")
    return tensor


def pair(values: Sequence[int]) -> tuple[int, int]:
    """Return what stands for height and for width."""
    first, second = values
    return int(first), int(second)


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()
