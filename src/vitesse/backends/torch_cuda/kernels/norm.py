# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""`triton.norm`: LayerNorm with the sum before it and the E4M3 rounding after it, each row read and written once.

Mean and then variance come from the registers that hold the row, so that no cancelling sum of squares is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.dependence import launched_early, let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import rounded
from vitesse.backends.torch_cuda.steps import E4M3

INPUTS = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 8192


@triton.jit
def normalise(
    x,
    weight,
    bias,
    residual,
    y,
    total,
    eight,
    rows,
    residual_rows,
    epsilon,
    inverse_scale,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,  # WIDTH, rounded up to a power of two
    ROWS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write the outputs that are given (None: not wanted) of ROWS rows; a residual's rows repeat."""
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    values = tl.load(x + at, inside, 0.0)
    wide = values.to(tl.float32)
    if residual is not None:
        there = (row % residual_rows).to(tl.int64)[:, None] * WIDTH + column[None, :]
        wide += tl.load(residual + there, inside, 0.0).to(tl.float32)
        # Both readers of the sum see the same numbers.
        values = wide.to(x.dtype.element_ty)
        wide = values.to(tl.float32)
    if total is not None:
        tl.store(total + at, values, inside)
    if y is not None or eight is not None:
        mean = tl.sum(wide, 1) / WIDTH
        apart = tl.where(inside, wide - mean[:, None], 0.0)
        variance = tl.sum(apart * apart, 1) / WIDTH
        made = apart * (1.0 / tl.sqrt_rn(variance + epsilon))[:, None]
        here = column < WIDTH
        made *= tl.load(weight + column, here, 0.0).to(tl.float32)[None, :]
        if bias is not None:
            made += tl.load(bias + column, here, 0.0).to(tl.float32)[None, :]
        if y is not None:
            tl.store(y + at, made.to(y.dtype.element_ty), inside)
        if eight is not None:
            tl.store(eight + at, rounded(made, inverse_scale, tl.float8e4nv), inside)


class TritonNorm:
    """The kernel above for one node; configurations are rows (a program takes) and num_warps.

    The attribute `wanted` says which of the three outputs are read, "111" where it is absent; others are None.
    """

    name = "triton.norm"
    step = "Norm"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why it cannot: the types, more than 8192 channels, a strided input, an old GPU."""
        x, _, _, residual = _inputs(tensors)
        eight = attributes.get("out_scale", 0.0) > 0
        needed = (8, 9) if eight else (8, 0)
        if device.capability < needed:
            return "compute capability {}.{}: needs {}.{}".format(*device.capability, *needed)
        if any(tensor is not None and tensor.dtype not in INPUTS for tensor in tensors):
            return f"types {[str(t.dtype) for t in tensors if t is not None]}: needs float16, bfloat16 or float32"
        if x.shape[-1] > WIDEST:
            return f"{x.shape[-1]} channels: at most {WIDEST}"
        if any(tensor is not None and not tensor.is_contiguous() for tensor in tensors):
            return "an input is not contiguous"
        if residual is not None and not _repeats(residual.shape, x.shape):
            return f"residual {tuple(residual.shape)}: needs a suffix of {tuple(x.shape)}"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return rows and warps of a program: from one warp a row, without barriers, to wide programs for few rows."""
        x, *_ = _inputs(tensors)
        columns = int(triton.next_power_of_2(x.shape[-1]))
        sizes = [(2, 4), (1, 4), (1, 1), (1, 2), (4, 4), (2, 2), (1, 8), (4, 8), (8, 8)]
        # A thread reads 8 numbers of 16 bits at a time; above 64, registers run out.
        fitting = [(rows, warps) for rows, warps in sizes if 8 <= rows * columns // (32 * warps) <= 64]
        chosen = fitting or [(1, 1 if columns < 256 else 8)]
        return [Tactic(self.name, {"rows": rows, "num_warps": warps}) for rows, warps in chosen]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Return the call: one kernel. Nothing is prepacked."""
        given = dict(attributes)
        rows, warps = tactic.config["rows"], tactic.config["num_warps"]

        def run(*inputs: Tensor | None) -> tuple[Tensor | None, ...]:
            return _launch(inputs, given, rows, warps)

        return run


KERNEL = TritonNorm()


def outputs_wanted(attributes: Attributes) -> tuple[bool, bool, bool]:
    """Which of (normalised, sum, normalised in E4M3) are read: the attribute `wanted`, and a scale for the third."""
    y, total, eight = (digit == "1" for digit in attributes.get("wanted", "111"))
    return y, total, eight and attributes.get("out_scale", 0.0) > 0


def _launch(
    tensors: Tensors, attributes: Attributes, rows_at_once: int, warps: int
) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual = _inputs(tensors)
    want_y, want_total, want_eight = outputs_wanted(attributes)
    y = torch.empty_like(x) if want_y else None
    total = torch.empty_like(x) if want_total and residual is not None else None
    eight = torch.empty_like(x, dtype=E4M3) if want_eight else None
    width = x.shape[-1]
    rows = x.numel() // width
    normalise[(-(-rows // rows_at_once),)](
        *(x, weight, bias, residual, y, total, eight),
        *(rows, residual.numel() // width if residual is not None else 1),
        *(attributes.get("epsilon", 1e-5), 1.0 / attributes["out_scale"] if want_eight else 1.0),
        WIDTH=width,
        COLUMNS=triton.next_power_of_2(width),
        ROWS=rows_at_once,
        num_warps=warps,
        **launched_early(x.device),
    )
    return y, x if want_total and residual is None else total, eight


def _repeats(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether rows of shape `part` repeat in `whole`: a suffix of it, apart from leading ones."""
    while len(part) > 1 and part[0] == 1:
        part = part[1:]
    return tuple(part) == tuple(whole[len(whole) - len(part) :])


def _inputs(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, weight, *rest = tensors
    assert x is not None and weight is not None
    bias, residual = [*rest, None, None][:2]
    return x, weight, bias, residual
