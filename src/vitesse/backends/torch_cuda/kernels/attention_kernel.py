# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Attention by heads on packed tensors, in Triton: float32 softmax over blocks of keys, output [B, Sq, H · Dv].

One program takes `BLOCK_M` queries of one head through the keys. Whole blocks of keys come in a pipelined loop without
a bounds check; what is left of an odd length (197 = 3 · 64 + 5) is one smaller block, fetched before the loop and used
after it. With `SPLITS` above 1 the keys of a head are shared out to several programs, whose partial sums `combine` adds
in a fixed order.

Scores stay in units of log2 with the scale folded into one multiply-add, exp2(s · factor − top). With a mask they stay
in natural units instead, because float32's lowest number, a common "never", would overflow when multiplied by log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitesse.backends.torch_cuda.kernels.dependence import let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import rounded

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend(
    q,  # pointers to the first channel of head 0
    k,
    v,
    k_blocks,  # tensor descriptors [B, S, H, D] in blocks [1, BLOCK_N, 1, WIDTH], or the pointers again
    v_blocks,
    mask,
    out,
    partial,  # float32 [SPLITS, B, Sq, H, Dv] and [2, SPLITS, B, Sq, H]: sums, and (top, total); unused with one split
    partial_rows,
    q_batch,  # strides in elements
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    factor,  # > 0
    inverse_scale,
    BATCH: tl.constexpr,
    HEADS: tl.constexpr,
    SQ: tl.constexpr,
    SK: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,  # the sizes, rounded up to powers of two
    VALUE_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,  # 0, or the power of two that holds what SK leaves over; BLOCK_N: fetched as a block
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    MASK: tl.constexpr,  # "", "add" or "keep"
    BLOCKS: tl.constexpr,  # whether k_blocks and v_blocks are tensor descriptors
    SHARED_KEYS: tl.constexpr,  # one set of keys, or of values, for the whole batch
    SHARED_VALUES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write `BLOCK_M` rows of one head: grid (tiles of queries · heads · batch, splits)."""
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    tiles: tl.constexpr = (SQ + BLOCK_M - 1) // BLOCK_M
    index = tl.program_id(0)
    first = index % tiles * BLOCK_M
    head = index // tiles % HEADS
    batch = index // tiles // HEADS
    wide = batch.to(tl.int64)
    k += wide * k_batch + head * SIZE
    v += wide * v_batch + head * VALUE_SIZE
    key_set = 0 if SHARED_KEYS else batch
    value_set = 0 if SHARED_VALUES else batch
    if MASK != "":
        mask += wide * mask_batch + head * mask_head
    queries = tile(q + wide * q_batch + head * SIZE, first, q_row, BLOCK_M, SQ, SIZE, WIDTH)
    whole: tl.constexpr = SK // BLOCK_N
    share: tl.constexpr = (whole + SPLITS - 1) // SPLITS
    uneven: tl.constexpr = share * SPLITS > whole  # then the last split runs past the whole blocks
    begin = tl.program_id(1) * share

    small: tl.constexpr = TAIL > 0 and TAIL < BLOCK_N
    if small:
        tail_keys = tile(k, whole * BLOCK_N, k_row, TAIL, SK, SIZE, WIDTH)
        tail_values = tile(v, whole * BLOCK_N, v_row, TAIL, SK, VALUE_SIZE, VALUE_WIDTH)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, VALUE_WIDTH], tl.float32)
    for step in tl.range(0, share, num_stages=STAGES):
        at = (begin + step) * BLOCK_N
        keys = fetched(k_blocks, k, key_set, at, head, k_row, BLOCK_N, SK, SIZE, WIDTH, BLOCKS)
        scores = tl.dot(queries, keys.T)
        scores = masked(
            *(scores, mask, first, at, mask_row, mask_column, factor),
            *(BLOCK_M, BLOCK_N, SQ, whole * BLOCK_N, MASK, uneven),
        )
        shares, shrink, top, total = softened(scores, factor, top, total, MASK)
        values = fetched(
            v_blocks, v, value_set, at, head, v_row, BLOCK_N, SK, VALUE_SIZE, VALUE_WIDTH, BLOCKS
        )
        sums = tl.dot(shares.to(values.dtype), values, sums * shrink[:, None])
    if TAIL > 0:
        # Only the last split has it: elsewhere its columns count as out of bounds.
        limit = tl.where(tl.program_id(1) == SPLITS - 1, SK, 0)
        at = whole * BLOCK_N
        if not small:
            tail_keys = fetched(k_blocks, k, key_set, at, head, k_row, TAIL, SK, SIZE, WIDTH, BLOCKS)
        scores = tl.dot(queries, tail_keys.T)
        scores = masked(
            *(scores, mask, first, at, mask_row, mask_column, factor),
            *(BLOCK_M, TAIL, SQ, limit, MASK, True),
        )
        shares, shrink, top, total = softened(scores, factor, top, total, MASK)
        if not small:
            tail_values = fetched(
                v_blocks, v, value_set, at, head, v_row, TAIL, SK, VALUE_SIZE, VALUE_WIDTH, BLOCKS
            )
        sums = tl.dot(shares.to(tail_values.dtype), tail_values, sums * shrink[:, None])

    rows = first + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, VALUE_WIDTH)
    inside = (rows < SQ)[:, None] & (columns < VALUE_SIZE)[None, :]
    line = (wide * SQ + rows) * HEADS + head
    if SPLITS == 1:
        y = rounded(sums / total[:, None], inverse_scale, out.dtype.element_ty)
        tl.store(out + line[:, None] * VALUE_SIZE + columns[None, :], y, inside)
    else:
        lines: tl.constexpr = BATCH * SQ * HEADS
        line += tl.program_id(1).to(tl.int64) * lines
        tl.store(partial + line[:, None] * VALUE_SIZE + columns[None, :], sums, inside)
        tl.store(partial_rows + line, top, rows < SQ)
        tl.store(partial_rows + line + lines * SPLITS, total, rows < SQ)


@triton.jit
def combine(
    partial,
    partial_rows,
    out,
    lines,  # B · Sq · H
    inverse_scale,
    VALUE_SIZE: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    SPLITS: tl.constexpr,
    MASK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Add what the splits found, in their order, so that the result never varies: grid (lines / LINES,)."""
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    unit: tl.constexpr = 1.0 if MASK == "" else LOG2_E
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    here = line < lines
    columns = tl.arange(0, VALUE_WIDTH)
    inside = here[:, None] & (columns < VALUE_SIZE)[None, :]
    highest = tl.full([LINES], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        highest = tl.maximum(highest, tl.load(partial_rows + split * lines + line, here, 0.0))
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros([LINES], tl.float32)
    sums = tl.zeros([LINES, VALUE_WIDTH], tl.float32)
    for split in tl.static_range(SPLITS):
        weight = tl.exp2((tl.load(partial_rows + split * lines + line, here, 0.0) - safe) * unit)
        total += weight * tl.load(partial_rows + (SPLITS + split) * lines + line, here, 1.0)
        at = (split * lines + line).to(tl.int64)
        sums += weight[:, None] * tl.load(partial + at[:, None] * VALUE_SIZE + columns[None, :], inside, 0.0)
    y = rounded(sums / total[:, None], inverse_scale, out.dtype.element_ty)
    at = line.to(tl.int64)[:, None] * VALUE_SIZE + columns[None, :]
    tl.store(out + at, y, inside)


@triton.jit
def tile(
    source, row, stride, ROWS: tl.constexpr, LENGTH: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr
):
    """Load [ROWS, WIDTH] by pointers, zero outside of [LENGTH, SIZE]."""
    rows = row + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    at = source + rows[:, None] * stride + columns[None, :]
    if SIZE == WIDTH:
        return tl.load(at, (rows < LENGTH)[:, None], 0.0)
    return tl.load(at, (rows < LENGTH)[:, None] & (columns < SIZE)[None, :], 0.0)


@triton.jit
def fetched(
    blocks,
    source,
    batch,
    row,
    head,
    stride,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Load a block of keys or values by the tensor memory accelerator where there is a descriptor, or by pointers."""
    if BLOCKS:
        return blocks.load([batch, row, head, 0]).reshape(ROWS, WIDTH)
    return tile(source, row, stride, ROWS, LENGTH, SIZE, WIDTH)


@triton.jit
def masked(
    scores,
    mask,
    first,
    at,
    row_stride,
    column_stride,
    factor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SQ: tl.constexpr,
    limit,
    MASK: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Apply the mask (scores then have the scale in them), and drop the columns from `limit` on."""
    columns = at + tl.arange(0, COLUMNS)
    if MASK != "":
        rows = tl.minimum(first + tl.arange(0, ROWS), SQ - 1)
        places = mask + rows[:, None] * row_stride + columns[None, :] * column_stride
        given = tl.load(places, (columns < limit)[None, :], 0)
        if MASK == "add":
            scores = scores * factor + given.to(tl.float32)
        else:
            scores = tl.where(given != 0, scores * factor, float("-inf"))
    if CHECK:
        scores = tl.where((columns < limit)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def softened(scores, factor, top, total, MASK: tl.constexpr):
    """One step of the online softmax: (exp of the scores, what the sums so far shrink by, new top, new total)."""
    highest = tl.max(scores, 1)
    higher = tl.maximum(top, highest * factor if MASK == "" else highest)
    # A row that has seen only −inf must not become NaN by a difference of infinities; if nothing else comes, 0 / 0 is.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    if MASK == "":
        shares = tl.exp2(scores * factor - safe[:, None])
        shrink = tl.exp2(top - safe)
    else:
        shares = tl.exp2((scores - safe[:, None]) * LOG2_E)
        shrink = tl.exp2((top - safe) * LOG2_E)
    return shares, shrink, higher, total * shrink + tl.sum(shares, 1)
