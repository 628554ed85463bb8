"""Is what a candidate computes what the plain function computes, to within the rounding of its type?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.steps import E4M3

# ‖y − y₀‖ / ‖y₀‖ that the order of the sums and one more rounding explain, with room to spare.
RELATIVE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float64: 1e-10}
# One wrong row of thousands hardly moves the norm: no value may be this far off, as a share of |y₀| + rms(y₀).
_SINGLE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2, torch.float64: 1e-8}
# E4M3: a value between two of the grid goes to either, which is one step; near zero a step is far smaller than the
# error of the 16-bit values that were rounded. So many values may be on another step, so many off by more than both.
_OTHER_STEP, _FURTHER = 0.05, 1e-4
# What the other steps add up to in the norm, with room to spare: a step is 1/8 of a value at most.
_NORM_E4M3 = 0.03


def disagreement(
    found: Sequence[Tensor | None], expected: Sequence[Tensor | None], *, wanted: str = ""
) -> str:
    """Return "" or what is wrong with a candidate's outputs, in words: shape, dtype, or how far off.

    Args:
        wanted: "101" where only the first and third output are read; "" = all.
    """
    if len(found) != len(expected):
        return f"gives {len(found)} outputs, not {len(expected)}"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if other is None or wanted[number : number + 1] == "0":
            continue
        said = "is missing" if one is None else _difference(one, other)
        if said:
            return f"output {number} {said}"
    return ""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖ in float64; infinity where one is finite and the other is not."""
    one, other = found.double(), expected.double()
    if bool((torch.isfinite(one) != torch.isfinite(other)).any()):
        return float("inf")
    sound = torch.isfinite(other)
    off = torch.where(sound, one - other, 0.0).norm()
    norm = torch.where(sound, other, 0.0).norm()
    return float(off / norm) if float(norm) else float(off)


def _difference(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"has shape {tuple(one.shape)}, not {tuple(other.shape)}"
    if one.dtype != other.dtype:
        return f"is {one.dtype}, not {other.dtype}"
    if not other.numel():
        return ""
    if other.dtype == E4M3:
        return _steps(one, other)
    if not other.is_floating_point():
        return "" if torch.equal(one, other) else "differs"
    error = relative_error(one, other)
    if not error <= RELATIVE[other.dtype]:
        return f"is off by {error:.1e} of its norm; {RELATIVE[other.dtype]:.0e} is allowed"
    return _single(one, other)


def _single(one: Tensor, other: Tensor) -> str:
    first, second = one.double(), other.double()
    sound = torch.isfinite(second)
    allowed = second.abs() + torch.where(sound, second, 0.0).square().mean().sqrt()
    share = torch.where(sound, (first - second).abs() / allowed.clamp_min(1e-30), 0.0).max()
    limit = _SINGLE[other.dtype]
    return "" if float(share) <= limit else f"has a value that is off by {float(share):.1e} of its size"


def _steps(one: Tensor, other: Tensor) -> str:
    """A value of the E4M3 grid is right one step beside the expected one, or as near to it as 16 bits would be."""
    first, second = one.double(), other.double()
    rms = float(torch.where(torch.isfinite(second), second, 0.0).square().mean().sqrt())
    off = (first - second).abs()
    same = _rank(one) == _rank(other)
    # NaN lies one code above the largest number, and no distance holds it to be near.
    near = same | (off <= RELATIVE[torch.float16] * rms)
    step = ((_rank(one) - _rank(other)).abs() <= 1) & torch.isfinite(off)
    other_step, further = float((~near).double().mean()), float((~near & ~step).double().mean())
    if further > _FURTHER:
        return f"is more than one step of the E4M3 grid and a rounding off in {further:.2%} of its values"
    # Three bits of mantissa: the gap of the grid beside a value is an eighth of it at most.
    far = ~near & ~step & ~(off <= _SINGLE[torch.float16] * (second.abs() + rms) + second.abs() / 8)
    if bool(far.any()):
        return f"has {int(far.sum())} values that are off by more than their size and the E4M3 grid explain"
    if other_step > _OTHER_STEP:
        return f"is on another step of the E4M3 grid in {other_step:.1%} of its values"
    error = relative_error(one, other)
    return "" if error <= _NORM_E4M3 else f"is off by {error:.1e} of its norm; {_NORM_E4M3:.0e} is allowed"


def _rank(values: Tensor) -> Tensor:
    """E4M3 codes in the order of their values are whole numbers: their difference is the steps between them."""
    codes = values.contiguous().view(torch.uint8).int()
    size = codes & 0x7F
    return torch.where(codes >= 0x80, -size, size)
