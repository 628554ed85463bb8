"""Constants between ONNX and torch, bit by bit, also in the types that numpy lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitesse.errors import ModelError

DTYPES: Mapping[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
}
# Types that numpy lacks: the integers that carry their bits, in torch and in numpy, and their name in ml_dtypes.
_CARRIED: Mapping[torch.dtype, tuple[torch.dtype, Any, Any]] = {
    torch.bfloat16: (torch.int16, np.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, np.uint8, ml_dtypes.float8_e4m3fn),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_torch(tensor: ir.TensorProtocol) -> Tensor:
    """Copy a tensor of a graph to the CPU.

    Raises:
        ModelError: its type has no counterpart in torch (strings, four bits).
    """
    dtype = torch_dtype(tensor.dtype, tensor.name or "")
    array: NDArray[Any] = np.array(tensor.numpy(), order="C")  # a copy: what lies in a file is read-only
    if dtype in _CARRIED:
        return torch.from_numpy(array.view(_CARRIED[dtype][1])).view(dtype)
    return torch.from_numpy(array)


def to_ir(tensor: Tensor, name: str) -> ir.TensorProtocol:
    """Copy a torch tensor into a tensor of a graph; raises ModelError where ONNX lacks its type."""
    if tensor.dtype not in _NAMES:
        raise ModelError(f"{name!r} has the type {tensor.dtype}", expected=", ".join(map(str, _NAMES)))
    host = tensor.detach().cpu().contiguous()
    if host.dtype in _CARRIED:
        bits, _, number = _CARRIED[host.dtype]
        return ir.Tensor(host.view(bits).numpy().view(number), dtype=_NAMES[tensor.dtype], name=name)
    return ir.Tensor(host.numpy(), dtype=_NAMES[tensor.dtype], name=name)


def torch_dtype(dtype: ir.DataType | None, name: str) -> torch.dtype:
    """Return torch's name of a type; raises ModelError naming the value that has it."""
    if dtype is None or dtype not in DTYPES:
        raise ModelError(
            f"{name!r} has the type {dtype.name if dtype else 'unknown'}",
            expected=", ".join(one.name for one in DTYPES),
            fix="build for another target, such as cuda or tensorrt",
        )
    return DTYPES[dtype]


def onnx_dtype(dtype: torch.dtype) -> ir.DataType:
    """Return ONNX' name of a type of `DTYPES`."""
    return _NAMES[dtype]
