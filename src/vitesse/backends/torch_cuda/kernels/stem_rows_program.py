# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The first convolution of a backbone, as device code in two kernels: pixels of four values first, then rows of taps.

    [B, C, H, W] of any float ──pack_pixels──▶ [B, H, row_pixels, 4] in 16 bits ──stem_rows──▶ [B, H', W', N]

The values of neighbouring pixels are adjacent then, so that all taps of a row are one run of memory, which is read 16
bytes at a time where stem_program.py reads each value by itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.conv_program import finish
from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous


@triton.jit
def pack_pixels(
    x,
    image,
    height,
    width,
    row_pixels,
    C: tl.constexpr,
    LEFT: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write BLOCK pixels of one row, 8 bytes each; what lies beside the image, and channels from C on, are zeros.

    Args:
        x: [B, C, height, width], dense, of any floating type: it is rounded to the image's.
        image: [B, height, row_pixels, 4]; its pixel LEFT is the first of x.
    """
    let_next_begin(DEPENDENT)
    segments = tl.cdiv(row_pixels, BLOCK)
    program = tl.program_id(0)
    line = program // segments
    pixel = program % segments * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, 4)
    column = pixel - LEFT
    seen = ((column >= 0) & (column < width))[:, None] & (channel < C)[None, :]
    plane = height * width
    row = x + line // height * (C * plane) + line % height * width
    at = line * row_pixels * 4 + pixel[:, None] * 4 + channel[None, :]
    wait_for_previous(DEPENDENT)

    values = tl.load(row + column[:, None] + (channel * plane)[None, :], mask=seen, other=0.0)
    tl.store(image + at, values.to(image.dtype.element_ty), mask=(pixel < row_pixels)[:, None])


@triton.jit
def stem_rows(
    image,
    weight,
    scale,
    bias,
    residual,
    out,
    inverse_scale,
    height,
    row_values,
    out_height,
    out_width,
    N: tl.constexpr,
    TAPS_Y: tl.constexpr,
    ROW_DEPTH: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    TOP: tl.constexpr,
    DILATION_Y: tl.constexpr,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Compute BLOCK_M neighbouring pixels of one row; each step takes the taps of BLOCK_K // ROW_DEPTH rows.

    The product is of filters by pixels: a warpgroup's 64 rows are the filters, which it reads once for all pixels. What
    a run has beyond its taps is multiplied by zeros: infinity or NaN there makes NaN, as it does under a tap.

    Args:
        image: [B, height, row_values / 4, 4] of pack_pixels. row_values is a multiple of 16 and STRIDE_X even, so that
            every run of taps begins at a multiple of 16 bytes; the last run of a row ends in that row.
        weight: [N padded to BLOCK_N, rows of taps padded to whole steps · ROW_DEPTH], zeros where no tap is.
        out, residual: [B, out_height, out_width, N]; others: as conv_program.taps has them.
    """
    let_next_begin(DEPENDENT)
    rows: tl.constexpr = BLOCK_K // ROW_DEPTH
    steps: tl.constexpr = (TAPS_Y + rows - 1) // rows
    segments = tl.cdiv(out_width, BLOCK_M)
    program = tl.program_id(0)
    line = program // segments
    column = program % segments * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    there = column < out_width
    y0 = line % out_height * STRIDE_Y - TOP
    plane = image + line // out_height * height * row_values
    runs = column[:, None] * (STRIDE_X * 4) + (k % ROW_DEPTH)[None, :]
    filters = weight + n[:, None] * (steps * BLOCK_K) + k[None, :]
    wait_for_previous(DEPENDENT)

    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for step in range(steps):
        tap = step * rows + k // ROW_DEPTH
        y = y0 + tap * DILATION_Y
        seen = there[:, None] & ((tap < TAPS_Y) & (y >= 0) & (y < height))[None, :]
        values = tl.load(plane + (y * row_values)[None, :] + runs, mask=seen, other=0.0)
        total = tl.dot(tl.load(filters + step * BLOCK_K), values.T, total)

    at = (line * out_width + column)[:, None] * N + n[None, :]
    kept = there[:, None] & (n < N)[None, :]
    finish(
        total.T, scale, bias, residual, out, inverse_scale, at, kept, n, N, ACTIVATION, APPROXIMATE, RESIDUAL_FIRST
    )  # fmt: skip
