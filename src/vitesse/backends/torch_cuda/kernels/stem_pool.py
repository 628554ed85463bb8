"""`triton.stem_pool`: the first convolution and the pooling behind it in one kernel, from packed pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.kernels.geometry import (
    HALVES,
    Geometry,
    epilogue_of,
    extent,
    pair,
    power_of_two,
)
from vitesse.backends.torch_cuda.kernels.linear import MOST_ELEMENTS
from vitesse.backends.torch_cuda.kernels.stem_image import packed_image
from vitesse.backends.torch_cuda.kernels.stem_pool_program import stem_pool
from vitesse.backends.torch_cuda.kernels.stem_rows import (
    PIXEL,
    ROWS_FILTERS,
    Rows,
    packed_filters,
    refusal,
    step_depth,
)

# The only window that the program knows: what a ResNet has.
WINDOW, STRIDES, PADS = (3, 3), (2, 2), (1, 1)


@dataclass(frozen=True)
class PoolConfig:
    """One way to run the kernel: pixels of the convolution side by side, depth of a step, pooled rows of a strip."""

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int
    rows: int


# Pixels, depth, warps, stages; best guess first. As in conv_configs.ROWS_TILES one stage reads through the L1 cache.
TILES = ((128, 32, 8, 1), (64, 64, 4, 3), (128, 32, 8, 3), (64, 32, 4, 1), (64, 32, 4, 3))
# Of a thread, so that a multiprocessor holds 16 warps: left alone, the compiler takes more and halves them.
REGISTERS = 128
# Pooled rows of a strip. Each strip computes one row of the convolution more than its own, so that long ones waste
# least; but a multiprocessor needs a few programs to be busy while one of them waits.
STRIPS, PROGRAMS = (16, 8, 4, 2), 3
# Tiles that are also offered with strips of half the length.
MOST_HALVED = 2


class TritonStemPool:
    """Kernel `triton.stem_pool`; see candidates.Kernel."""

    name = "triton.stem_pool"
    step = "ConvPool"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse other windows, more channels than a pixel has, float32, old GPUs, tensors beyond 32-bit offsets."""
        x, weight, _ = tensors
        found, dtype = Geometry.of(tensors, attributes), epilogue_of(attributes).dtype
        assert x is not None and weight is not None  # Geometry.of has seen them
        if weight.dtype not in HALVES or dtype != weight.dtype:
            return f"takes float16 and bfloat16, not a weight of {weight.dtype} for an output of {dtype}"
        if not x.dtype.is_floating_point or x.dtype.itemsize < 2:
            return f"takes an image of floats, not of {x.dtype}"
        if device.capability < (8, 0):
            return f"needs compute capability 8.0, this is {device.capability}"
        window, strides = pair(attributes["window"]), pair(attributes["window_strides"])
        pads = tuple(attributes["window_pads"])
        if (window, strides, pads[:2]) != (WINDOW, STRIDES, PADS) or max(pads) > 1:
            return f"pools 3 × 3 pixels, stride 2, padded by 1; not {window}, strides {strides}, pads {pads}"
        largest = max(x.numel(), found.pixels * found.filters)
        return refusal(found) or ("" if 0 < largest <= MOST_ELEMENTS else f"{largest} elements in one tensor")

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return every tile that is no wider than the image, with strips that leave all multiprocessors busy."""
        found = Geometry.of(tensors, attributes)
        pooled, widest = _pooled(found, attributes), max(64, power_of_two(found.out_width + 1))
        made: list[PoolConfig] = []
        for number, (block_m, wanted, warps, stages) in enumerate(
            tile for tile in TILES if tile[0] <= widest
        ):
            depth = step_depth(found, wanted)
            busy = [
                rows for rows in STRIPS if _programs(found, pooled, block_m, rows) >= PROGRAMS * device.sms
            ]
            rows = busy[0] if busy else STRIPS[-1]
            strips = (rows, rows // 2) if number < MOST_HALVED else (rows,)
            made += [PoolConfig(block_m, depth, warps, stages, each) for each in strips]
        return [Tactic(self.name, asdict(config)) for config in dict.fromkeys(made)]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack the weight; the call packs the image and computes the step."""
        _, weight, bias = tensors
        assert weight is not None
        config, found = PoolConfig(**tactic.config), Geometry.of(tensors, attributes)
        packed = packed_filters(weight, found, config.block_k)
        offsets = None if bias is None else bias.float().contiguous()
        pooled, epilogue = _pooled(found, attributes), epilogue_of(attributes)
        grid = (
            _programs(found, pooled, config.block_m, config.rows),
            math.ceil(found.filters / ROWS_FILTERS),
        )
        constants = _constants(found, config, epilogue.activation)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x = given[0]
            assert x is not None
            image = packed_image(x, found, packed.dtype)
            shape = (found.batch, found.filters, *pooled)
            out = torch.empty(shape, dtype=epilogue.dtype, device=x.device, memory_format=torch.channels_last)
            stem_pool[grid](
                image,
                packed,
                offsets,
                out,
                found.height,
                image.shape[2] * PIXEL,
                found.out_height,
                found.out_width,
                *pooled,
                **constants,
                **launched_early(x.device),
            )
            return (out,)

        return run


def _pooled(found: Geometry, attributes: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the output."""
    top, left, bottom, right = attributes["window_pads"]
    return (
        extent(found.out_height + top + bottom, WINDOW[0], STRIDES[0], 1),
        extent(found.out_width + left + right, WINDOW[1], STRIDES[1], 1),
    )


def _programs(found: Geometry, pooled: tuple[int, int], block_m: int, rows: int) -> int:
    """Return how many programs there are for ROWS_FILTERS filters; see stem_pool for what each pools."""
    height, width = pooled
    return found.batch * math.ceil(height / rows) * math.ceil(width / (block_m // 2 - 1))


def _constants(found: Geometry, config: PoolConfig, activation: str) -> dict[str, Any]:
    return {
        "N": found.filters,
        "TAPS_Y": found.kernel[0],
        "ROW_DEPTH": Rows.of(found).depth,
        "STRIDE_Y": found.strides[0],
        "STRIDE_X": found.strides[1],
        "TOP": found.pads[0],
        "DILATION_Y": found.dilations[0],
        "ACTIVATION": activation,
        "ROWS": config.rows,
        "BLOCK_M": config.block_m,
        "BLOCK_N": ROWS_FILTERS,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "maxnreg": REGISTERS,
    }


KERNEL = TritonStemPool()
