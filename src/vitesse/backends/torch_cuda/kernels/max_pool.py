# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""`triton.max_pool`: the standard operator MaxPool over two axes, NHWC.

PyTorch's kernel also writes the places of the maxima as 64-bit integers, four times the bytes of a 16-bit output; this
one writes the maxima alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.dependence import launched_early, let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.geometry import channels_last, extent, pair, power_of_two

TYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_ELEMENTS = 2**31 - 1
# Windows are unrolled, so that a large one would be a large program.
MOST_TAPS = 49
# Bytes of channels that a program takes at once: at least one line of the L2 cache.
LINE_BYTES = 128


@triton.jit
def pool(
    x,
    out,
    pixels,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write BLOCK_M neighbouring pixels × BLOCK_C channels; NaN wins, what is outside of the image loses.

    Args:
        x: [B, height, width, C]; out: [B, out_height, out_width, C]; pixels: B · out_height · out_width.
    """
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    line = m // out_width
    y0 = line % out_height * STRIDE_Y - TOP
    x0 = m % out_width * STRIDE_X - LEFT
    image = line // out_height * height
    kept = (m < pixels)[:, None] & (c < C)[None, :]
    lowest = -float("inf")
    largest = tl.full((BLOCK_M, BLOCK_C), lowest, dtype=x.dtype.element_ty)
    for tap_y in tl.static_range(TAPS_Y):
        y = y0 + tap_y * DILATION_Y
        for tap_x in tl.static_range(TAPS_X):
            column = x0 + tap_x * DILATION_X
            inside = (y >= 0) & (y < height) & (column >= 0) & (column < width)
            places = x + (((image + y) * width + column) * C)[:, None] + c[None, :]
            values = tl.load(places, mask=kept & inside[:, None], other=lowest)
            largest = tl.maximum(largest, values, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + m[:, None] * C + c[None, :], largest, mask=kept)


@dataclass(frozen=True)
class Window:
    """The geometry of a MaxPool over [B, C, H, W], from its ONNX attributes and with their defaults."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]

    @classmethod
    def of(cls, attributes: Attributes) -> Window:
        """Read it; `kernel_shape` has two entries, see TritonMaxPool.refuses."""
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        return cls(
            kernel=pair(attributes["kernel_shape"]),
            strides=pair(attributes.get("strides", (1, 1))),
            pads=(top, left, bottom, right),
            dilations=pair(attributes.get("dilations", (1, 1))),
        )

    def output(self, x: Tensor) -> tuple[int, int]:
        """Return height and width of what is pooled from x, rounded down."""
        top, left, bottom, right = self.pads
        return (
            extent(x.shape[2] + top + bottom, self.kernel[0], self.strides[0], self.dilations[0]),
            extent(x.shape[3] + left + right, self.kernel[1], self.strides[1], self.dilations[1]),
        )


class TritonMaxPool:
    """Kernel `triton.max_pool`; see candidates.Kernel. Its step is the standard operator, with ONNX's attributes."""

    name = "triton.max_pool"
    step = "MaxPool"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse integers, one or three axes, sizes rounded up, pads given by name, large windows and tensors."""
        x = tensors[0]
        if x is None or x.dtype not in TYPES:
            return f"takes float16, bfloat16 and float32, not {None if x is None else x.dtype}"
        if x.ndim != 4:
            return f"pools over two axes, not {x.ndim - 2}"
        if attributes.get("ceil_mode", 0):
            return "ceil_mode"
        if attributes.get("auto_pad", "NOTSET") not in ("", "NOTSET"):
            return f"auto_pad {attributes['auto_pad']}"
        if math.prod(attributes["kernel_shape"]) > MOST_TAPS:
            return f"a window of {tuple(attributes['kernel_shape'])}"
        return "" if 0 < x.numel() <= MOST_ELEMENTS else f"{x.numel()} elements in one tensor"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Offer three numbers of pixels for a program."""
        x = tensors[0]
        assert x is not None  # refuses() has seen it
        channels = min(LINE_BYTES // x.dtype.itemsize, power_of_two(x.shape[1]))
        sizes = ((32, 4), (64, 4), (128, 8))
        return [
            Tactic(self.name, {"block_m": m, "block_c": channels, "num_warps": warps}) for m, warps in sizes
        ]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Return the call; there is nothing to prepack."""
        window, config = Window.of(attributes), tactic.config

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x = given[0]
            assert x is not None
            batch, channels, height, width = x.shape
            rows, columns = window.output(x)
            shape = (batch, channels, rows, columns)
            out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
            pixels = batch * rows * columns
            grid = (math.ceil(pixels / config["block_m"]), math.ceil(channels / config["block_c"]))
            sizes = (pixels, height, width, rows, columns)
            pool[grid](
                channels_last(x),
                out,
                *sizes,
                **_constants(channels, window, config),
                **launched_early(x.device),
            )
            return (out,)

        return run


def _constants(channels: int, window: Window, config: Any) -> dict[str, Any]:
    return {
        "C": channels,
        "TAPS_Y": window.kernel[0],
        "TAPS_X": window.kernel[1],
        "STRIDE_Y": window.strides[0],
        "STRIDE_X": window.strides[1],
        "TOP": window.pads[0],
        "LEFT": window.pads[1],
        "DILATION_Y": window.dilations[0],
        "DILATION_X": window.dilations[1],
        "BLOCK_M": config["block_m"],
        "BLOCK_C": config["block_c"],
        "num_warps": config["num_warps"],
    }


KERNEL = TritonMaxPool()
