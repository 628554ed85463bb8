# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Convolution as an implicit matrix product, as device code: the taps of a filter one after the other.

Pixels are the rows of the product and filters its columns; nothing is unfolded in memory. Sums are in float32 and the
epilogue of `steps.conv` is done on them. NHWC memory throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import activated, rounded


@triton.jit
def taps(
    x,
    weight,
    scale,
    bias,
    residual,
    out,
    inverse_scale,
    pixels,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    C_PADDED: tl.constexpr,
    N: tl.constexpr,
    TAPS: tl.constexpr,
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
    DEPENDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute BLOCK_M consecutive pixels of BLOCK_N filters; each tap BLOCK_K channels at a time.

    Args:
        x: [B, height, width, C], dense; out, residual: [B, out_height, out_width, N], dense.
        weight: [N padded to BLOCK_N, TAPS · C_PADDED], zeros where it is padded.
        scale, bias: float32 [N], or None; residual may be None.
        pixels: B · out_height · out_width.
        TAPS, TAPS_X: pixels that a filter reads, in all and in a row.
        GROUP: tiles of pixels that are walked before the next tile of filters, so that L2 keeps both.
        DEPENDENT: see dependence.py.
    """
    let_next_begin(DEPENDENT)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    first = tile // (GROUP * tiles_n) * GROUP
    rows = tl.minimum(tl.cdiv(pixels, BLOCK_M) - first, GROUP)
    within = tile % (GROUP * tiles_n)
    m = (first + within % rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = within // rows * BLOCK_N + tl.arange(0, BLOCK_N)

    line = m // out_width
    y0 = line % out_height * STRIDE_Y - TOP
    x0 = m % out_width * STRIDE_X - LEFT
    pixel = (line // out_height * height + y0) * width + x0
    there = m < pixels
    k = tl.arange(0, BLOCK_K)
    blocks: tl.constexpr = C_PADDED // BLOCK_K
    filters = weight + n[:, None] * (TAPS * C_PADDED) + k[None, :]
    wait_for_previous(DEPENDENT)

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(TAPS * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + k
        down = tap // TAPS_X * DILATION_Y
        right = tap % TAPS_X * DILATION_X
        y = y0 + down
        xx = x0 + right
        seen = (there & (y >= 0) & (y < height) & (xx >= 0) & (xx < width))[:, None]
        if C_PADDED != C:
            seen = seen & (c < C)[None, :]
        places = x + ((pixel + down * width + right) * C)[:, None] + c[None, :]
        values = tl.load(places, mask=seen, other=0.0)
        total = tl.dot(values, tl.load(filters + step * BLOCK_K).T, total)

    at = m[:, None] * N + n[None, :]
    kept = there[:, None] & (n < N)[None, :]
    finish(
        total, scale, bias, residual, out, inverse_scale, at, kept, n, N, ACTIVATION, APPROXIMATE, RESIDUAL_FIRST
    )  # fmt: skip


@triton.jit
def boxes(
    x,
    weight,
    scale,
    bias,
    residual,
    out,
    inverse_scale,
    out_height,
    out_width,
    C_PADDED: tl.constexpr,
    N: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_X: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute a box of BLOCK_Y × BLOCK_X pixels of one image with stride 1, loaded by the TMA unit.

    It reads a shifted box for each tap and fills in zeros outside of the image, so that no thread computes addresses.

    Args:
        x: tensor descriptor [B, height, width, C] in blocks [1, BLOCK_Y, BLOCK_X, BLOCK_K].
        weight: tensor descriptor [N, TAPS · C_PADDED] in blocks [BLOCK_N, BLOCK_K].
        others: as `taps` has them.
    """
    let_next_begin(DEPENDENT)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // tiles_n
    n0 = tl.program_id(0) % tiles_n * BLOCK_N
    across = tl.cdiv(out_width, BLOCK_X)
    down = tl.cdiv(out_height, BLOCK_Y)
    x0 = tile % across * BLOCK_X
    y0 = tile // across % down * BLOCK_Y
    image = tile // (across * down)
    blocks: tl.constexpr = C_PADDED // BLOCK_K
    wait_for_previous(DEPENDENT)

    total = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_N), dtype=tl.float32)
    for step in range(TAPS * blocks):
        tap = step // blocks
        y = y0 - TOP + tap // TAPS_X * DILATION_Y
        xx = x0 - LEFT + tap % TAPS_X * DILATION_X
        values = x.load([image, y, xx, step % blocks * BLOCK_K]).reshape(BLOCK_Y * BLOCK_X, BLOCK_K)
        total = tl.dot(values, weight.load([n0, step * BLOCK_K]).T, total)

    m = tl.arange(0, BLOCK_Y * BLOCK_X)
    row = y0 + m // BLOCK_X
    column = x0 + m % BLOCK_X
    n = n0 + tl.arange(0, BLOCK_N)
    at = ((image * out_height + row) * out_width + column)[:, None] * N + n[None, :]
    kept = ((row < out_height) & (column < out_width))[:, None] & (n < N)[None, :]
    finish(
        total, scale, bias, residual, out, inverse_scale, at, kept, n, N, ACTIVATION, APPROXIMATE, RESIDUAL_FIRST
    )  # fmt: skip


@triton.jit
def finish(
    y,
    scale,
    bias,
    residual,
    out,
    inverse_scale,
    at,
    kept,
    n,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
):
    """The epilogue of steps.conv on the tile y [M, N], and its store.

    Args:
        at, kept: [M, N]: where an element stands in out and residual, and whether it is there; n: [N]: filters.
    """
    if scale is not None:
        y = y * tl.load(scale + n, mask=n < N, other=0.0)[None, :]
    if bias is not None:
        y = y + tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    if residual is None:
        y = activated(y, ACTIVATION, APPROXIMATE)
    else:
        z = tl.load(residual + at, mask=kept, other=0.0).to(tl.float32)
        if RESIDUAL_FIRST:  # noqa: SIM108 (a ternary of Triton evaluates both)
            y = activated(y + z, ACTIVATION, APPROXIMATE)
        else:
            y = activated(y, ACTIVATION, APPROXIMATE) + z
    tl.store(out + at, rounded(y, inverse_scale, out.dtype.element_ty), mask=kept)
