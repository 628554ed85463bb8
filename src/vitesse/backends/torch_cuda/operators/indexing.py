"""Made from indices: gathers, scatters, ranges, triangles and constants."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.operators.constants import DTYPES
from vitesse.backends.torch_cuda.operators.operator import Made, Unsupported, operator

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Constant")
def constant(
    *,
    value: Tensor | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
) -> Tensor:
    """Return the value that the node holds, on the CPU."""
    if value is not None:
        return value
    whole = value_int if value_int is not None else value_ints
    if whole is not None:
        return torch.tensor(whole, dtype=torch.int64)
    real = value_float if value_float is not None else value_floats
    if real is None:
        raise Unsupported("no value", "value, value_int, value_ints, value_float or value_floats")
    return torch.tensor(real, dtype=torch.float32)


@operator("ConstantOfShape", host={0})
def constant_of_shape(sizes: Tensor, *, value: Tensor | None = None) -> Tensor:
    """Return a tensor of these sizes filled with one number, float32 zeros by default."""
    filled = torch.zeros(1) if value is None else value
    return filled.reshape(()).expand(sizes.tolist()).contiguous()


@operator("Range", host={0, 1, 2}, since=11)
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Return start, start + delta, … below the limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    return (torch.arange(count, dtype=torch.float64) * step + first).to(start.dtype)


@operator("EyeLike", by_shape=True)
def eye_like(x: Tensor, *, dtype: int = 0, k: int = 0) -> Tensor:
    """Return ones on diagonal k and zeros elsewhere, on the CPU."""
    rows, columns = x.shape
    wanted = DTYPES[ir.DataType(dtype)] if dtype else x.dtype
    return torch.ones(rows, columns).triu(k).tril(k).to(wanted)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Pick slices along an axis; the indices' axes take its place, negative ones count from the end."""
    at = axis % x.ndim
    picked = x.index_select(at, _positive(indices, x.shape[at]).reshape(-1))
    return picked.reshape(*x.shape[:at], *indices.shape, *x.shape[at + 1 :])


@operator("GatherElements", since=11)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Pick one element along an axis for each index."""
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


@operator("GatherND", since=11)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Pick the slices that the last axis of the indices names, behind the shared batch axes."""
    depth = indices.shape[-1]
    batch, inner = x.shape[:batch_dims], x.shape[batch_dims : batch_dims + depth]
    rest = x.shape[batch_dims + depth :]
    flat = x.reshape(math.prod(batch), math.prod(inner), -1)
    places = _linear(indices, inner).reshape(math.prod(batch), -1, 1)
    picked = torch.gather(flat, 1, places.expand(-1, -1, flat.shape[-1]))
    return picked.reshape(*indices.shape[:-1], *rest)


@operator("ScatterElements", since=11)
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Return x with one element along an axis replaced, or joined by the reduction, for each index."""
    return _scattered(x, axis, _positive(indices, x.shape[axis]), updates, reduction)


@operator("ScatterND", since=11)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Return x with the slices replaced, or joined by the reduction, that the last axis of the indices names."""
    inner = x.shape[: indices.shape[-1]]
    flat = x.reshape(math.prod(inner), -1)
    places = _linear(indices, inner).reshape(-1, 1).expand(-1, flat.shape[1])
    return _scattered(flat, 0, places, updates.reshape(places.shape), reduction).reshape(x.shape)


@operator("Trilu", host={1}, since=14)
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Keep the triangle above (below) diagonal k and put zeros elsewhere."""
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("OneHot", host={1})
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """Return values[1] where the new axis equals the index, else values[0]; negative indices count from the end."""
    count = int(depth.reshape(-1)[0].item())
    at = axis + indices.ndim + 1 if axis < 0 else axis
    shape = [1] * (indices.ndim + 1)
    shape[at] = count
    steps = torch.arange(count, device=indices.device).reshape(shape)
    inside = torch.where(indices < 0, indices + count, indices).to(torch.int64)
    return torch.where(inside.unsqueeze(at) == steps, values[1], values[0])


@operator("NonZero", by_value=True)
def non_zero(x: Tensor) -> Tensor:
    """Return the places of all elements that are not zero: [rank, count], int64."""
    return torch.nonzero(x).t()


@operator("TopK", host={1}, since=10)
def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Made:
    """Return the k largest (smallest) values along an axis in order, and their indices."""
    values, indices = torch.topk(x, int(k.item()), axis, bool(largest), True)
    return values, indices


def _positive(indices: Tensor, size: int) -> Tensor:
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


def _linear(indices: Tensor, sizes: torch.Size) -> Tensor:
    """Tuples of indices along the last axis → one index into the flattened axes of these sizes."""
    total = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for at, size in enumerate(sizes):
        total = total * size + _positive(indices[..., at], size)
    return total


def _scattered(x: Tensor, axis: int, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    if reduction not in _REDUCTIONS:
        raise Unsupported(f"reduction={reduction!r}", f"none, {', '.join(_REDUCTIONS)}")
    return x.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction], include_self=True)
