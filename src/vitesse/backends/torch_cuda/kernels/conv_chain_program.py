# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The end of a residual block and the 1x1 convolution behind it, as device code: what is between is not read again."""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.conv_program import finish
from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import activated


@triton.jit
def chain(
    x,
    other,
    residual,
    weight,
    bias,
    next_weight,
    next_bias,
    out,
    next_out,
    pixels,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    C_PADDED: tl.constexpr,
    OTHER: tl.constexpr,
    OTHER_PADDED: tl.constexpr,
    N: tl.constexpr,
    N_PADDED: tl.constexpr,
    NEXT: tl.constexpr,
    NEXT_PADDED: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEXT_ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Compute BLOCK_M consecutive pixels of all filters, BLOCK_N at a time, and what the next product makes of those.

    Args:
        x: [B, out_height, out_width, C], dense; other: [B, height, width, OTHER], dense, or None.
        weight: [N_PADDED, C_PADDED + OTHER_PADDED], bias: float32 [N_PADDED], next_weight: [NEXT_PADDED, N_PADDED],
            zeros where they are padded; next_bias: float32 [NEXT]; biases may be None.
        out: [B, out_height, out_width, N], dense; residual: the same, or None.
        next_out: [B, out_height, out_width, NEXT], dense; pixels: B · out_height · out_width.
        N_PADDED: N up to a multiple of BLOCK_N; the other padded sizes are powers of two.
    """
    let_next_begin(DEPENDENT)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = (m < pixels)[:, None]
    # Rows outside repeat the first: their results are not stored, and their loads need no mask.
    own = tl.where(m < pixels, m, 0)
    k = tl.arange(0, C_PADDED)
    n = tl.arange(0, BLOCK_N)
    following = tl.arange(0, NEXT_PADDED)
    depth: tl.constexpr = C_PADDED + OTHER_PADDED
    filters = weight + n[:, None] * depth
    columns = next_weight + following[:, None] * N_PADDED + n[None, :]

    wait_for_previous(DEPENDENT)
    a = tl.load(x + (own * C)[:, None] + k[None, :], (k < C)[None, :], 0.0)
    if other is not None:
        j = tl.arange(0, OTHER_PADDED)
        line = own // out_width
        row = line // out_height * height + line % out_height * STRIDE_Y
        shared = row * width + own % out_width * STRIDE_X
        b = tl.load(other + (shared * OTHER)[:, None] + j[None, :], (j < OTHER)[None, :], 0.0)

    total = tl.zeros((BLOCK_M, NEXT_PADDED), dtype=tl.float32)
    for first in range(0, N_PADDED, BLOCK_N):
        at = (own * N)[:, None] + (first + n)[None, :]
        inside = (first + n < N)[None, :]
        y = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        y = tl.dot(a, tl.load(filters + first * depth + k[None, :]).T, y)
        if other is not None:
            y = tl.dot(b, tl.load(filters + first * depth + C_PADDED + j[None, :]).T, y)
        if bias is not None:
            y += tl.load(bias + first + n)[None, :]
        if residual is not None:
            y += tl.load(residual + at, inside, 0.0).to(tl.float32)
        half = activated(y, ACTIVATION, False).to(out.dtype.element_ty)
        tl.store(out + at, half, there & inside)
        total = tl.dot(half, tl.load(columns + first).T, total)

    at = (own * NEXT)[:, None] + following[None, :]
    known = there & (following < NEXT)[None, :]
    finish(
        total, None, next_bias, None, next_out, 1.0, at, known, following, NEXT, NEXT_ACTIVATION, False, True
    )  # fmt: skip
