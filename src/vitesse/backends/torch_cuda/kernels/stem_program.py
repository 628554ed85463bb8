# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The first convolution of a backbone, as device code: an image of few channels that lies in planes."""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.conv_program import finish
from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous


@triton.jit
def stem(
    x,
    weight,
    scale,
    bias,
    residual,
    out,
    inverse_scale,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    N: tl.constexpr,
    K_PADDED: tl.constexpr,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Compute BLOCK_M neighbouring pixels of one row; all channels and taps are the depth of one product.

    Neighbouring threads read neighbouring pixels of a plane, which lie STRIDE_X apart and share lines of the L1 cache
    with those of the next tap.

    Args:
        x: [B, C, height, width], dense, of any floating type: it is rounded to the weight's.
        weight: [N padded to BLOCK_N, K_PADDED], columns in the order channel, y, x, then zeros.
        out, residual: [B, out_height, out_width, N]; others: as conv_program.taps has them.
    """
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    segments = tl.cdiv(out_width, BLOCK_M)
    program = tl.program_id(0)
    line = program // segments
    column = program % segments * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y0 = line % out_height * STRIDE_Y - TOP
    x0 = column * STRIDE_X - LEFT
    planes = x + line // out_height * (C * height * width)

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in tl.static_range(0, K_PADDED, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        y = y0 + k // TAPS_X % TAPS_Y * DILATION_Y
        seen = (k < C * TAPS_Y * TAPS_X) & (y >= 0) & (y < height)
        xx = x0[:, None] + (k % TAPS_X * DILATION_X)[None, :]
        mask = seen[None, :] & (xx >= 0) & (xx < width)
        offset = (k // (TAPS_Y * TAPS_X) * height + y) * width
        values = tl.load(planes + offset[None, :] + xx, mask=mask, other=0.0).to(weight.dtype.element_ty)
        filters = tl.load(weight + n[:, None] * K_PADDED + k[None, :])
        total = tl.dot(values, filters.T, total)

    at = (line * out_width + column)[:, None] * N + n[None, :]
    kept = (column < out_width)[:, None] & (n < N)[None, :]
    finish(
        total, scale, bias, residual, out, inverse_scale, at, kept, n, N, ACTIVATION, APPROXIMATE, RESIDUAL_FIRST
    )  # fmt: skip
