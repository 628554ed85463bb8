"""`triton.conv_chain`: the end of a residual block and the next block's first 1x1 convolution in one kernel.

What the first product makes goes to memory, because later steps read it, and from registers into the second product.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.conv_chain_program import chain
from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.kernels.geometry import (
    HALVES,
    channels_last,
    epilogue_of,
    pair,
    power_of_two,
)
from vitesse.backends.torch_cuda.kernels.linear import MOST_ELEMENTS
from vitesse.backends.torch_cuda.kernels.linear_configs import SHARED_BYTES

# What a thread may hold of the tiles; with more some spill (tests hold all configurations to it).
MOST_REGISTERS = 160


@dataclass(frozen=True)
class ChainConfig:
    """One way to run the kernel: pixels and filters of a tile of the first product, warps, and stages of weights."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Best guess first. Every program reads all weights: many pixels for each spare L2, few leave room for more programs.
CONFIGS = (
    ChainConfig(128, 32, 4, 3),
    ChainConfig(128, 64, 8, 3),
    ChainConfig(64, 64, 4, 2),
    ChainConfig(64, 32, 4, 3),
    ChainConfig(128, 32, 8, 3),
    ChainConfig(256, 32, 8, 3),
    ChainConfig(64, 64, 4, 3),
    ChainConfig(64, 32, 4, 4),
)


@dataclass(frozen=True)
class ChainShape:
    """Sizes of a step: channels of x and of the shortcut's input (0 = none), filters of both products, pixels of x."""

    own: int
    shared: int
    filters: int
    following: int
    pixels: int

    @classmethod
    def of(cls, tensors: Tensors) -> ChainShape:
        """Read them off the tensors of a ConvChain step."""
        x, weight, _, next_weight, *_ = tensors
        assert x is not None and weight is not None and next_weight is not None
        own = x.shape[1]
        return cls(
            own, weight.shape[1] - own, weight.shape[0], next_weight.shape[0], x.numel() // max(1, own)
        )

    @property
    def depths(self) -> tuple[int, int]:
        """Channels of x and of the shortcut's input as the kernel has them: 0, or a power of two."""
        return _depth(self.own), _depth(self.shared) if self.shared else 0

    @property
    def width(self) -> int:
        """Filters of the second product as the kernel has them."""
        return _depth(self.following)

    def fits(self, config: ChainConfig) -> bool:
        """Whether a multiprocessor of an H100 holds the tiles: those of the inputs, and all sums at once."""
        depth = sum(self.depths)
        weights = config.num_stages * config.block_n * (depth + self.width)
        # Residuals that are on their way, and what goes to memory.
        tiles = config.num_stages * config.block_m * config.block_n
        shared = 2 * (config.block_m * depth + weights + tiles)
        # Sums in float32; the first product also rounded, and its residual.
        sums = config.block_m * (self.width + 2 * config.block_n) / (32 * config.num_warps)
        return shared <= SHARED_BYTES and sums <= MOST_REGISTERS


class TritonConvChain:
    """Kernel `triton.conv_chain`; see candidates.Kernel. All tensors in the same 16 bits."""

    name = "triton.conv_chain"
    step = "ConvChain"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse other types, old GPUs, tensors beyond 32-bit offsets, and sizes that no multiprocessor holds."""
        x, weight, _, next_weight, _, residual, other = tensors
        found = ChainShape.of(tensors)
        types = {one.dtype for one in (x, weight, next_weight, residual, other) if one is not None}
        types.add(epilogue_of(attributes).dtype)
        if len(types) > 1 or not types <= {*HALVES}:
            return f"takes float16 and bfloat16, all of one type, not {', '.join(sorted(map(str, types)))}"
        if device.capability < (8, 0):
            return f"needs compute capability 8.0, this is {device.capability}"
        largest = max(found.pixels * found.filters, *(one.numel() for one in tensors if one is not None))
        if not 0 < largest <= MOST_ELEMENTS:
            return f"{largest} elements in one tensor"
        if any(found.fits(config) for config in CONFIGS):
            return ""
        return f"{found.own} + {found.shared} channels to {found.following} do not fit in one multiprocessor"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the configurations whose tiles a multiprocessor holds."""
        found = ChainShape.of(tensors)
        return [Tactic(self.name, asdict(config)) for config in CONFIGS if found.fits(config)]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack weights and biases; the call computes the step."""
        _, weight, bias, next_weight, next_bias, _, _ = tensors
        assert weight is not None and next_weight is not None  # refuses() has seen them
        config, found = ChainConfig(**tactic.config), ChainShape.of(tensors)
        (depth, shared), filters = found.depths, -(-found.filters // config.block_n) * config.block_n
        packed = _packed(weight, found, filters)
        offsets = None if bias is None else F.pad(bias.float(), (0, filters - found.filters))
        more = (0, filters - found.filters, 0, found.width - found.following)
        following = F.pad(next_weight.flatten(1), more).contiguous()
        next_offsets = None if next_bias is None else next_bias.float().contiguous()
        down, across = pair(attributes["strides"])

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x, residual, other = given[0], given[5], given[6]
            assert x is not None
            out, next_out = (_output(x, channels) for channels in (found.filters, found.following))
            second = x if other is None else other
            chain[(math.ceil(found.pixels / config.block_m),)](
                channels_last(x),
                None if other is None else channels_last(other),
                None if residual is None else channels_last(residual),
                packed,
                offsets,
                following,
                next_offsets,
                out,
                next_out,
                found.pixels,
                second.shape[2],
                second.shape[3],
                x.shape[2],
                x.shape[3],
                C=found.own,
                C_PADDED=depth,
                OTHER=found.shared,
                OTHER_PADDED=shared,
                N=found.filters,
                N_PADDED=filters,
                NEXT=found.following,
                NEXT_PADDED=found.width,
                STRIDE_Y=down,
                STRIDE_X=across,
                ACTIVATION=attributes["activation"],
                NEXT_ACTIVATION=attributes["next_activation"],
                BLOCK_M=config.block_m,
                BLOCK_N=config.block_n,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                **launched_early(x.device),
            )
            return out, next_out

        return run


def _packed(weight: Tensor, found: ChainShape, filters: int) -> Tensor:
    """[O, C + C₂, 1, 1] → [filters, both depths], zeros where they are padded."""
    rows = weight.flatten(1)
    own, shared = rows[:, : found.own], rows[:, found.own :]
    padded = [
        F.pad(part, (0, depth - part.shape[1]))
        for part, depth in zip((own, shared), found.depths, strict=True)
    ]
    return F.pad(torch.cat(padded, 1), (0, 0, 0, filters - found.filters)).contiguous()


def _output(x: Tensor, channels: int) -> Tensor:
    """Allocate [B, channels, H, W], channels_last, for as many pixels as x has."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _depth(channels: int) -> int:
    """Return the smallest power of two that holds the channels and that a product takes."""
    return max(16, power_of_two(channels))


KERNEL = TritonConvChain()
