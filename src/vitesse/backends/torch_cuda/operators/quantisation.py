"""QuantizeLinear and DequantizeLinear, per tensor or per axis; the arithmetic is in float32."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.operators.constants import DTYPES
from vitesse.backends.torch_cuda.operators.operator import Unsupported, operator
from vitesse.backends.torch_cuda.steps import E4M3, LARGEST_E4M3

_INTEGERS = (torch.int8, torch.uint8)
_QUANTISED = (*_INTEGERS, E4M3)


@operator("QuantizeLinear", since=10)
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Tensor:
    """Round x / scale to the nearest number, ties to even, add the zero point and saturate.

    The type is that of the zero point, else `output_dtype`, else uint8.
    """
    _refuse_blocks(block_size)
    if not saturate:
        raise Unsupported("saturate=0", "saturate=1")
    dtype = torch.uint8
    if zero_point is not None:
        dtype = zero_point.dtype
    elif output_dtype:
        dtype = DTYPES.get(ir.DataType(output_dtype), torch.float64)
    if dtype not in _QUANTISED:
        raise Unsupported(f"quantising to {dtype}", "int8, uint8 and float8e4m3fn")
    scaled = x.float() / _along(scale, x, axis).float()
    if dtype is E4M3:
        return scaled.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(E4M3)
    shifted = torch.round(scaled)
    if zero_point is not None:
        shifted = shifted + _along(zero_point, x, axis).float()
    limits = torch.iinfo(dtype)
    return shifted.clamp(limits.min, limits.max).to(dtype)


@operator("DequantizeLinear", since=10)
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x − zero point) · scale, in the type of the scale."""
    _refuse_blocks(block_size)
    if x.dtype not in (*_QUANTISED, torch.int32):
        raise Unsupported(f"dequantising {x.dtype}", "int8, uint8, int32 and float8e4m3fn")
    wide = x.float()
    if zero_point is not None and x.dtype in _INTEGERS:
        wide = wide - _along(zero_point, x, axis).float()
    dtype = DTYPES[ir.DataType(output_dtype)] if output_dtype else scale.dtype
    return (wide * _along(scale, x, axis).float()).to(dtype)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values per index of an axis → broadcastable to x; a single one as it is."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _refuse_blocks(block_size: int) -> None:
    if block_size:
        raise Unsupported(f"block_size={block_size}", "one scale per tensor or per index of an axis")
