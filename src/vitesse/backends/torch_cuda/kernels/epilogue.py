# mypy: allow-untyped-decorators, allow-untyped-calls
"""What follows the sum of a matrix product, as device code: scale, bias, activation, residual, rounding.

Shared by every Triton kernel that ends in the epilogue of `steps.linear`. All of it is in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# The interpreter runs kernels on the CPU; it knows no PTX.
INTERPRETED: bool = triton.knobs.runtime.interpret

ON_GPU = tl.constexpr(not INTERPRETED)
LARGEST_E4M3 = tl.constexpr(448.0)


def approximate(out_dtype: torch.dtype) -> bool:
    """Whether tanh.approx (relative error 2^-11) vanishes in the rounding of the output: E4M3 rounds to 2^-4."""
    return out_dtype == torch.float8_e4m3fn and not INTERPRETED


@triton.jit
def activated(x: tl.tensor, ACTIVATION: tl.constexpr, APPROXIMATE: tl.constexpr) -> tl.tensor:
    """Return the activation of x, float32; a key of steps.ACTIVATIONS. NaN stays NaN.

    APPROXIMATE takes one MUFU operation in place of two: for outputs in E4M3.
    """
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        x = _gelu_by_tanh(x) if APPROXIMATE else _gelu(x)
    elif ACTIVATION == "gelu_tanh":
        # 0.5 · (1 + tanh(u)) = sigmoid(2u), u = sqrt(2/π) · (x + 0.044715 · x³).
        twice = x * (1.5957691216057308 + 0.07135481282553 * x * x)
        x = x * (_half_tanh(twice) if APPROXIMATE else _sigmoid(twice))
    elif ACTIVATION == "silu":
        x = x * (_half_tanh(x) if APPROXIMATE else _sigmoid(x))
    elif ACTIVATION == "sigmoid":
        x = _half_tanh(x) if APPROXIMATE else _sigmoid(x)
    else:
        tl.static_assert(ACTIVATION == "", "unknown activation")
    return x


@triton.jit
def rounded(y: tl.tensor, inverse_scale: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Return y in the output's dtype; for E4M3 divided by the scale and saturated at ±448. NaN stays NaN."""
    if dtype == tl.float8e4nv:
        y = tl.clamp(y * inverse_scale, -LARGEST_E4M3, LARGEST_E4M3, propagate_nan=tl.PropagateNan.ALL)
    return y.to(dtype)


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return _reciprocal(1.0 + _exp2(-1.4426950408889634 * x))


@triton.jit
def _half_tanh(x: tl.tensor) -> tl.tensor:
    """sigmoid(x) = 0.5 + 0.5 · tanh(x / 2), by the one instruction of the hardware."""
    return 0.5 + 0.5 * _tanh(0.5 * x)


@triton.jit
def _gelu(x: tl.tensor) -> tl.tensor:
    """x · Φ(x) as max(x, 0) − |x| · Φ(−|x|), which cancels nowhere; 14 instructions.

    Φ(−a) = erfc(a / √2) / 2 by formula 7.1.26 of Abramowitz and Stegun, absolute error of erfc below 1.5e-7. |x| is
    cut where Φ(−a) is 0 in float32, so that infinity does not become NaN.
    """
    a = tl.minimum(tl.abs(x), 16.0)
    t = _reciprocal(1.0 + 0.23164189 * a)
    p = 0.5307027145 * t - 0.7265760135
    p = p * t + 0.7107068705
    p = p * t - 0.142248368
    p = p * t + 0.127414796
    # exp(−a² / 2) = 2^−b².
    b = 0.8493218002880191 * a
    tail = p * t * _exp2(-b * b)
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tail


@triton.jit
def _gelu_by_tanh(x: tl.tensor) -> tl.tensor:
    """x · Φ(x), 2 · Φ(x) − 1 = tanh(x · (a + b·x² + c·x⁴)): fitted on |x| ≤ 5, absolute error of the result 2.6e-5."""
    square = tl.minimum(x * x, 25.0)
    inner = x * (0.797507901 + square * (0.0370056357 - 0.00035151497 * square))
    return x * (0.5 + 0.5 * _tanh(inner))


# One instruction each, where Triton's own functions add steps for denormal numbers and the last bit (2^-22 remains).


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _exp2(x: tl.tensor) -> tl.tensor:
    if ON_GPU:
        x = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    else:
        x = tl.exp2(x)
    return x


@triton.jit
def _reciprocal(x: tl.tensor) -> tl.tensor:
    if ON_GPU:
        x = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    else:
        x = 1.0 / x
    return x
