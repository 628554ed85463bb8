# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The first convolution of a backbone and the pooling behind it, as device code: what is pooled never goes to memory.

    [B, H, row_pixels, 4] of pack_pixels ──stem_pool──▶ [B, H', W', N], the largest of 3 × 3 at every second pixel

A program goes down a strip of the image, row of the convolution by row. Two rows belong to one pooled row each; the
third, between them, to both, and is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import activated


@triton.jit
def stem_pool(
    image,
    weight,
    bias,
    out,
    height,
    row_values,
    conv_height,
    conv_width,
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
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Compute ROWS pooled rows of BLOCK_M / 2 − 1 pixels, from BLOCK_M pixels of 2 · ROWS + 1 rows of the convolution.

    One loop goes over the rows and the steps of each, so that what a row reads is on its way while the one before it is
    computed. The product is as in stem_rows. NaN wins, and what lies beside the convolution loses.

    Args:
        image, weight: as stem_rows has them; conv_height, conv_width: of the convolution.
        out: [B, out_height, out_width, N]; its pixel i is of the pixels 2i − 1 to 2i + 1 of the convolution.
    """
    let_next_begin(DEPENDENT)
    taps: tl.constexpr = BLOCK_K // ROW_DEPTH
    steps: tl.constexpr = (TAPS_Y + taps - 1) // taps
    own: tl.constexpr = BLOCK_M // 2 - 1
    segments = tl.cdiv(out_width, own)
    strips = tl.cdiv(out_height, ROWS)
    program = tl.program_id(0)
    first = program % segments * own
    strip = program // segments
    batch = strip // strips
    top = strip % strips * ROWS
    column = 2 * first - 1 + tl.arange(0, BLOCK_M)
    there = (column >= 0) & (column < conv_width)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    plane = image + batch * height * row_values
    runs = column[:, None] * (STRIDE_X * 4) + (k % ROW_DEPTH)[None, :]
    filters = weight + n[:, None] * (steps * BLOCK_K) + k[None, :]
    offsets = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if bias is not None:
        offsets = tl.load(bias + n, mask=n < N, other=0.0)
    pooled = tl.arange(0, BLOCK_M // 2)
    kept = (pooled < own) & (first + pooled < out_width)
    behind = tl.broadcast_to(tl.minimum(pooled + 1, own)[None, :], (BLOCK_N, BLOCK_M // 2))
    wait_for_previous(DEPENDENT)

    nothing = tl.full((BLOCK_N, BLOCK_M), -float("inf"), dtype=tl.float32).to(out.dtype.element_ty)
    largest = nothing
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for turn in range((2 * ROWS + 1) * steps):
        row, step = turn // steps, turn % steps
        line = 2 * top - 1 + row
        tap = step * taps + k // ROW_DEPTH
        y = line * STRIDE_Y - TOP + tap * DILATION_Y
        seen = there[:, None] & ((tap < TAPS_Y) & (y >= 0) & (y < height))[None, :]
        values = tl.load(plane + (y * row_values)[None, :] + runs, mask=seen, other=0.0)
        total = tl.dot(tl.load(filters + step * BLOCK_K), values.T, total)
        if step == steps - 1:
            made = activated(total + offsets[:, None], ACTIVATION, False).to(out.dtype.element_ty)
            made = tl.where((there & (line >= 0) & (line < conv_height))[None, :], made, nothing)
            # Triton gives the larger of two bfloat16 as float32; what a loop carries keeps its type.
            largest = tl.maximum(largest, made, propagate_nan=tl.PropagateNan.ALL).to(made.dtype)
            if row % 2 == 0:
                if row > 0:
                    left, middle = tl.split(tl.reshape(largest, (BLOCK_N, BLOCK_M // 2, 2)))
                    right = tl.gather(left, behind, axis=1)
                    best = tl.maximum(left, middle, propagate_nan=tl.PropagateNan.ALL)
                    best = tl.maximum(best, right, propagate_nan=tl.PropagateNan.ALL)
                    pooled_row = top + row // 2 - 1
                    pixel = (batch * out_height + pooled_row) * out_width + first + pooled
                    at = pixel[None, :] * N + n[:, None]
                    mask = (kept & (pooled_row < out_height))[None, :] & (n < N)[:, None]
                    tl.store(out + at, best, mask=mask)
                largest = made
            total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
