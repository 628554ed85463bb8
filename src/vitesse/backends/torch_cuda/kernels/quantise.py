# mypy: allow-untyped-decorators, allow-untyped-calls
"""`triton.quantise`: 16 bits, and a sum of two, to E4M3 in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.dependence import launched_early, let_next_begin, wait_for_previous
from vitesse.backends.torch_cuda.kernels.epilogue import rounded
from vitesse.backends.torch_cuda.kernels.geometry import HALVES
from vitesse.backends.torch_cuda.kernels.linear import MOST_ELEMENTS
from vitesse.backends.torch_cuda.steps import E4M3

# Elements of a program, and its warps.
SIZES = ((1024, 4), (2048, 4), (4096, 8))


@triton.jit
def quantise(
    x: tl.tensor,
    other: tl.tensor,
    out: tl.tensor,
    inverse_scale: tl.tensor,
    count: tl.tensor,
    period: tl.tensor,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Round BLOCK of `count` elements of x + other, in the order of memory; `other` begins again after `period`."""
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    y = tl.load(x + at, inside, 0.0).to(tl.float32)
    if other is not None:
        y += tl.load(other + at % period, inside, 0.0).to(tl.float32)
    tl.store(out + at, rounded(y, inverse_scale, out.dtype.element_ty), inside)


class TritonQuantise:
    """Kernel `triton.quantise`; see candidates.Kernel."""

    name = "triton.quantise"
    step = "Quantise"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse float32, GPUs without E4M3, and tensors beyond 32-bit offsets."""
        x, other = [*tensors, None][:2]
        if x is None or x.dtype not in HALVES:
            return f"takes float16 and bfloat16, not {None if x is None else x.dtype}"
        if other is not None and (not other.numel() or x.numel() % other.numel()):
            return f"{x.numel()} elements are no multiple of {other.numel()}"
        if device.capability < (8, 9):
            return f"needs compute capability 8.9, this is {device.capability}"
        return "" if 0 < x.numel() <= MOST_ELEMENTS else f"{x.numel()} elements in one tensor"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the sizes of a program."""
        return [Tactic(self.name, {"block": block, "num_warps": warps}) for block, warps in SIZES]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Return the call."""
        block, warps = tactic.config["block"], tactic.config["num_warps"]
        inverse = 1.0 / attributes["out_scale"]

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x, other = [*given, None][:2]
            assert x is not None  # refuses() has seen it
            added = None if other is None else other.contiguous()
            x = x if added is None and _pixels_last(x) else x.contiguous()
            out = torch.empty_like(x, dtype=E4M3)
            period = 1 if added is None else added.numel()
            grid = (triton.cdiv(x.numel(), block),)
            quantise[grid](
                x,
                added,
                out,
                inverse,
                x.numel(),
                period,
                BLOCK=block,
                num_warps=warps,
                **launched_early(x.device),
            )
            return (out,)

        return run


def _pixels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


KERNEL = TritonQuantise()
