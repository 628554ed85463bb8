"""The ResNet in front of a hybrid Vision Transformer (R50+ViT-B/16 and others of google-research/vision_transformer).

Bottleneck units with the ReLU after the addition, GroupNorm of 32 groups (epsilon 1e-6), and convolutions whose
kernels are standardised: zero mean and unit deviation per output channel. The standardised kernel does not depend on
the image, so it is computed once, when the checkpoint is read (`standardise`), and the graph has plain convolutions.

Convolutions and pooling pad as "SAME" of JAX: as little as gives ceil(side / stride) outputs, the odd pixel behind.
What that is depends on whether a side is even, so a stem is built for one image size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
Size = tuple[int, int]


@dataclass(frozen=True)
class StemConfig:
    """Sizes of a stem: `width` channels after the root block, `depths` = units of each stage (none: root block only).

    Stage i has 4 · width · 2^i output channels, and halves height and width from the second stage on.
    """

    width: int
    depths: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Channels that the stem hands to the patch embedding."""
        return self.width * 2 ** (len(self.depths) + 1) if self.depths else self.width

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the result."""
        return 4 * 2 ** max(len(self.depths) - 1, 0)

    def out(self, side: int) -> int:
        """Cells along a side of `side` pixels."""
        return -(-side // self.stride)


class SameConv(nn.Conv2d):
    """Convolution without bias, padded as "SAME" for inputs of (height, width) `size`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, size: Size) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        rows, columns = (same_padding(side, kernel, stride) for side in size)
        self.pad = (*columns, *rows)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) → (batch, outputs, ⌈height / stride⌉, ⌈width / stride⌉)."""
        return super().forward(F.pad(x, self.pad) if any(self.pad) else x)


class Unit(nn.Module):
    """1×1, 3×3 (with the stride), 1×1 convolutions to 4 · planes channels, added to the projected input."""

    def __init__(self, channels: int, planes: int, stride: int, size: Size) -> None:
        super().__init__()
        smaller = (-(-size[0] // stride), -(-size[1] // stride))
        self.conv1, self.gn1 = SameConv(channels, planes, 1, 1, size), group_norm(planes)
        self.conv2, self.gn2 = SameConv(planes, planes, 3, stride, size), group_norm(planes)
        self.conv3, self.gn3 = SameConv(planes, 4 * planes, 1, 1, smaller), group_norm(4 * planes)
        self.projects = needs_projection(channels, planes, stride)
        if self.projects:
            self.conv_proj = SameConv(channels, 4 * planes, 1, stride, size)
            self.gn_proj = group_norm(4 * planes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4 · planes, ⌈height / stride⌉, ⌈width / stride⌉)."""
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        y = self.gn3(self.conv3(y))
        return F.relu((self.gn_proj(self.conv_proj(x)) if self.projects else x) + y)


class ResNetStem(nn.Module):
    """Images (batch, 3, height, width) of `size` → (batch, channels, ⌈height / stride⌉, ⌈width / stride⌉)."""

    def __init__(self, config: StemConfig, size: Size) -> None:
        super().__init__()
        self.conv_root, self.gn_root = SameConv(3, config.width, 7, 2, size), group_norm(config.width)
        height, width = (-(-side // 2) for side in size)
        self.odd = (height % 2, width % 2)
        height, width = (-(-side // 2) for side in (height, width))
        channels, units = config.width, []
        for planes, stride in units_of(config):
            units.append(Unit(channels, planes, stride, (height, width)))
            channels, height, width = 4 * planes, -(-height // stride), -(-width // stride)
        self.units = nn.ModuleList(units)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map."""
        x = F.relu(self.gn_root(self.conv_root(images)))
        # "SAME" for 3×3 / 2: one pixel on each side of an odd length, one behind an even one (ceil_mode).
        x = F.max_pool2d(x, 3, 2, padding=self.odd, ceil_mode=True)
        for unit in self.units:
            x = unit(x)
        return x


def units_of(config: StemConfig) -> list[tuple[int, int]]:
    """Return (planes, stride) of every unit, all stages in a row."""
    return [
        (config.width * 2**stage, 2 if stage and not unit else 1)
        for stage, depth in enumerate(config.depths)
        for unit in range(depth)
    ]


def needs_projection(channels: int, planes: int, stride: int) -> bool:
    """Say whether the input of a unit must be projected before it can be added to the output."""
    return channels != 4 * planes or stride != 1


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as flax has it by default; `channels` must be a multiple of 32."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the pixels that "SAME" padding puts before and behind a side."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def standardise(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring each output channel of a kernel (height, width, in, out) to mean 0 and deviation 1.

    (w − mean) / (deviation + 1e-5), the population deviation, as `StdConv` does before each convolution (weight
    standardisation, Qiao et al. 2019, arXiv:1903.10520).
    """
    wide = kernel.astype(np.float64)
    centred = wide - wide.mean(axis=(0, 1, 2))
    return np.asarray(centred / (wide.std(axis=(0, 1, 2)) + 1e-5), np.float32)
