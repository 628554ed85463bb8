# mypy: allow-untyped-decorators, allow-untyped-calls
"""Matrix products with an epilogue, as device code: one tile for each program, a share of K, or a walk over the tiles.

x [M, K] times a weight that is stored as [N, K] (wgmma takes E4M3 only so, and 16 bits as well so), summed in float32.
Operands come through tensor descriptors (TMA: no address arithmetic, zeros outside) or through masked pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import activated, rounded


@triton.jit
def gemm(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    column_sums: tl.tensor,
    partial: tl.tensor,
    arrived: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    residual_stride: tl.tensor,
    residual_rows: tl.tensor,
    inverse_scale: tl.tensor,
    epsilon: tl.tensor,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    SHARED_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    OUT_DESCRIPTOR: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROMOTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One output tile for each program; with SPLIT above 1 the K range is shared by that many programs.

    They leave float32 sums in `partial` [SPLIT, M, N]; the last to arrive at a tile (`arrived`, zeros, int32, one for
    each tile) adds them in the order of K, so that the result does not depend on who was last, ends the tile and puts
    the zero back for the next launch.

    column_sums [N], float32, of the weight: x is normalised, each row over K, without another pass over it. Its mean
    and variance are summed from the operands, and ((x − mean) / σ) W = (x W − mean · column_sums) / σ. SPLIT is 1 then.

    DEPENDENT: see dependence.py.
    """
    let_next_begin(DEPENDENT)
    tile = tl.program_id(0)
    m, n = _place(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
    columns = n + tl.arange(0, BLOCK_N)
    factor, offset = _vectors(scale, bias, columns, N)
    wait_for_previous(DEPENDENT)
    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLIT)
    first = tl.program_id(1) * share
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for step in range(first, tl.minimum(first + share, steps)):
        a, b = _operands(
            x, weight, m, n, step * BLOCK_K, M, N, K, x_stride, DESCRIPTORS, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K
        )
        total = tl.dot(a, b.T, total, max_num_imprecise_acc=PROMOTED)
        if column_sums is not None:
            # Added up across the row only at the end: a reduction in every step would cost more than the product.
            wide = a.to(tl.float32)
            sums += wide
            squares += wide * wide
    if column_sums is not None:
        mean = tl.sum(sums, 1) / K
        variance = tl.maximum(tl.sum(squares, 1) / K - mean * mean, 0.0)
        shift = tl.load(column_sums + columns, columns < N, 0.0)
        total = (total - mean[:, None] * shift[None, :]) * tl.rsqrt(variance + epsilon)[:, None]
    last = True
    if SPLIT > 1:
        rows = m + tl.arange(0, BLOCK_M)
        inside = (rows[:, None] < M) & (columns[None, :] < N)
        places = rows[:, None] * N + columns[None, :]
        tl.store(partial + tl.program_id(1) * M * N + places, total, inside)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1
        if last:
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for part in range(SPLIT):
                total += tl.load(partial + part * M * N + places, inside, 0.0, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
    if last:
        _finish(
            total, m, n, factor, offset, out, scale, bias, residual, M, N, out_stride, residual_stride, residual_rows,
            inverse_scale, ACTIVATION, APPROXIMATE, RESIDUAL_FIRST, SHARED_ROWS, OUT_DESCRIPTOR, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def persistent_gemm(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    residual_stride: tl.tensor,
    residual_rows: tl.tensor,
    inverse_scale: tl.tensor,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    SHARED_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    OUT_DESCRIPTOR: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROMOTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """A fixed number of programs walk over the tiles; the operands of the next tile load while one is ended.

    Triton 3.6 does not give the loads warps of their own here: `warp_specialize` does nothing on compute capability 9.0
    with eight warps, and does not compile with four.
    """
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        m, n = _place(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(tl.cdiv(K, BLOCK_K)):
            a, b = _operands(
                x,
                weight,
                m,
                n,
                step * BLOCK_K,
                M,
                N,
                K,
                x_stride,
                DESCRIPTORS,
                EVEN_K,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            total = tl.dot(a, b.T, total, max_num_imprecise_acc=PROMOTED)
        factor, offset = _vectors(scale, bias, n + tl.arange(0, BLOCK_N), N)
        _finish(
            total, m, n, factor, offset, out, scale, bias, residual, M, N, out_stride, residual_stride, residual_rows,
            inverse_scale, ACTIVATION, APPROXIMATE, RESIDUAL_FIRST, SHARED_ROWS, OUT_DESCRIPTOR, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _place(
    tile: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """First row and column of a tile. GROUP rows of tiles go column by column, so that what runs at once shares L2."""
    across = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP * across)
    height = tl.minimum(tl.cdiv(M, BLOCK_M) - group * GROUP, GROUP)
    within = tile % (GROUP * across)
    return (group * GROUP + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit
def _operands(
    x: tl.tensor,
    weight: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_stride: tl.tensor,
    DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """One step's [BLOCK_M, BLOCK_K] of x and [BLOCK_N, BLOCK_K] of the weight."""
    if DESCRIPTORS:
        a = x.load([m, k])
        b = weight.load([n, k])
    else:
        # Rows outside repeat inside ones: their results are not stored, and the loads need no mask but that of K.
        rows = (m + tl.arange(0, BLOCK_M)) % M
        columns = (n + tl.arange(0, BLOCK_N)) % N
        ks = k + tl.arange(0, BLOCK_K)
        at_x = x + rows[:, None] * x_stride + ks[None, :]
        at_weight = weight + columns[:, None] * K + ks[None, :]
        if EVEN_K:
            a = tl.load(at_x)
            b = tl.load(at_weight)
        else:
            a = tl.load(at_x, ks[None, :] < K, 0.0)
            b = tl.load(at_weight, ks[None, :] < K, 0.0)
    return a, b


@triton.jit
def _vectors(scale: tl.tensor, bias: tl.tensor, columns: tl.tensor, N: tl.tensor) -> tl.tensor:
    """The tile's scale and bias; a None stays one (its place is taken by a number that nobody reads)."""
    factor = 1.0 if scale is None else tl.load(scale + columns, columns < N, 0.0)
    offset = 0.0 if bias is None else tl.load(bias + columns, columns < N, 0.0)
    return factor, offset


@triton.jit
def _finish(
    total: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    factor: tl.tensor,
    offset: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    out_stride: tl.tensor,
    residual_stride: tl.tensor,
    residual_rows: tl.tensor,
    inverse_scale: tl.tensor,
    ACTIVATION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    SHARED_ROWS: tl.constexpr,
    OUT_DESCRIPTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """The epilogue of steps.linear on one tile, and its store. SHARED_ROWS: row m takes the residual's m mod rows."""
    rows = m + tl.arange(0, BLOCK_M)
    columns = n + tl.arange(0, BLOCK_N)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    y = total
    if scale is not None:
        y = y * factor[None, :]
    if bias is not None:
        y = y + offset[None, :]
    if residual is None:
        y = activated(y, ACTIVATION, APPROXIMATE)
    else:
        read = rows % residual_rows if SHARED_ROWS else rows
        added = tl.load(residual + read[:, None] * residual_stride + columns[None, :], inside, 0.0).to(
            tl.float32
        )
        if RESIDUAL_FIRST:
            y = activated(y + added, ACTIVATION, APPROXIMATE)
        else:
            y = activated(y, ACTIVATION, APPROXIMATE) + added
    if OUT_DESCRIPTOR:
        out.store([m, n], rounded(y, inverse_scale, out.dtype))
    else:
        tl.store(
            out + rows[:, None] * out_stride + columns[None, :],
            rounded(y, inverse_scale, out.dtype.element_ty),
            inside,
        )
