# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Two 1x1 convolutions added, as device code: one product whose depth runs over the channels of both inputs."""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.conv_program import finish
from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous


@triton.jit
def pair(
    x,
    other,
    weight,
    bias,
    out,
    inverse_scale,
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
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Compute BLOCK_M consecutive pixels of BLOCK_N filters, BLOCK_K channels at a time, those of x first.

    One loop over both, so that the loads of `other` are under way while the last products of x are made.

    Args:
        x: [B, out_height, out_width, C], dense; other: [B, height, width, OTHER], dense.
        weight: [N padded to BLOCK_N, C_PADDED + OTHER_PADDED], zeros where it is padded; bias: float32 [N], or None.
        out: [B, out_height, out_width, N], dense; pixels: B · out_height · out_width.
        GROUP: tiles of pixels that are walked before the next tile of filters, so that L2 keeps both.
    """
    let_next_begin(DEPENDENT)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    first = tile // (GROUP * tiles_n) * GROUP
    rows = tl.minimum(tl.cdiv(pixels, BLOCK_M) - first, GROUP)
    within = tile % (GROUP * tiles_n)
    m = (first + within % rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = within // rows * BLOCK_N + tl.arange(0, BLOCK_N)

    # Rows outside repeat the first: their results are not stored, and their loads need no mask.
    own = tl.where(m < pixels, m, 0)
    line = own // out_width
    across = own % out_width * STRIDE_X
    shared = (line // out_height * height + line % out_height * STRIDE_Y) * width + across
    k = tl.arange(0, BLOCK_K)
    blocks: tl.constexpr = C_PADDED // BLOCK_K
    depth: tl.constexpr = C_PADDED + OTHER_PADDED
    filters = weight + n[:, None] * depth + k[None, :]

    wait_for_previous(DEPENDENT)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(depth // BLOCK_K):
        is_own = step < blocks
        source = tl.where(is_own, x, other)
        row = tl.where(is_own, own * C, shared * OTHER)
        c = tl.where(is_own, step, step - blocks) * BLOCK_K + k
        places = source + row[:, None] + c[None, :]
        if C_PADDED != C or OTHER_PADDED != OTHER:
            values = tl.load(places, (c < tl.where(is_own, C, OTHER))[None, :], 0.0)
        else:
            values = tl.load(places)
        total = tl.dot(values, tl.load(filters + step * BLOCK_K).T, total)

    at = m[:, None] * N + n[None, :]
    kept = (m < pixels)[:, None] & (n < N)[None, :]
    finish(total, None, bias, None, out, inverse_scale, at, kept, n, N, ACTIVATION, APPROXIMATE, True)
