"""Numbers in eight bits, integers and E4M3, with their scales: one per tensor for activations, per channel for weights.

A real number x is stored as q = round(x / scale) + zero point, and q outside the type's range as its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.environment import describe
from vitesse.precision.fp8 import LARGEST, NUMBER, to_e4m3

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of one tensor; the zero point's type is that of the stored numbers."""

    scale: Floats
    zero_point: NDArray[Any]


def activation_grid(low: float, high: float, *, number: str, symmetric: bool) -> Grid:
    """Return the per-tensor grid for values from `low` to `high`, low <= 0 <= high.

    Symmetric int8 has zero point 0 and reaches from -127 · scale to 127 · scale; uint8 covers [low, high] and has a
    zero point so that 0 is stored exactly; E4M3 (`fp8`) puts the largest magnitude on 448. Where nothing but zeros was
    seen, the scale is 1.
    """
    reach = max(-low, high)
    if number == "fp8":
        return Grid(_positive(np.float32(reach / LARGEST)), np.zeros((), NUMBER))
    if symmetric:
        return Grid(_positive(np.float32(reach / 127)), np.zeros((), np.int8))
    scale = _positive(np.float32((high - low) / 255))
    return Grid(scale, np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8))


def rounded_weight(
    weight: Floats, axis: int, *, number: str, bits: int, least: Floats | None = None
) -> tuple[NDArray[Any], Grid]:
    """Round weights per channel along `axis`, symmetrically; return the stored numbers and their grid.

    Scales of E4M3 are powers of two: a floating point format rounds no worse by it, the real numbers are exact in 16
    bits, too, and a runtime may move such factors into the numbers and multiply by one scale.

    Args:
        bits: of integers: 8 stores up to ±127, 7 up to ±63.
        least: smallest scale per channel, (channels,), or None.
    """
    others = tuple(at for at in range(weight.ndim) if at != axis % weight.ndim)
    most = LARGEST if number == "fp8" else float(2 ** (bits - 1) - 1)
    scale = np.asarray(np.abs(weight).max(axis=others) / most, np.float32)
    if number == "fp8":
        # x = m · 2^e with m from 0.5 to below 1, so that the power of two not below x has e, and e − 1 where m = 0.5.
        mantissa, exponent = np.frexp(scale)
        scale = np.where(scale > 0, np.ldexp(np.float32(1), exponent - (mantissa == 0.5)), np.float32(0))
    scale = _positive(scale if least is None else np.maximum(scale, least))
    ratio = np.asarray(weight / np.expand_dims(scale, others), np.float32)
    stored = to_e4m3(ratio) if number == "fp8" else np.clip(np.rint(ratio), -most, most).astype(np.int8)
    return stored, Grid(scale, np.zeros(scale.shape, stored.dtype))


def restored(stored: NDArray[Any], grid: Grid, axis: int) -> Floats:
    """Return the real numbers that stored weights stand for."""
    others = tuple(at for at in range(stored.ndim) if at != axis % stored.ndim)
    return np.asarray(stored.astype(np.float32) * np.expand_dims(grid.scale, others), np.float32)


def weight_bits_here() -> int:
    """Return 8 where the processor adds int8 products in 32 bits (VNNI, AMX, ARM's dot product), else 7.

    Without it, u8 × s8 products are added in pairs in 16 bits and saturate: 2 · 255 · 127 > 32767.
    """
    return 8 if {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(describe()["cpu"]["flags"]) else 7


def _positive(scale: Any) -> Floats:
    """Replace scales of 0, and those too small for a normal float32, which runtimes flush to 0, by 1."""
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
