"""Other shapes of the same numbers: reshapes, slices, joins, padding."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.operators.operator import Made, Unsupported, operator


def integers(tensor: Tensor | None) -> list[int] | None:
    """Read a host tensor of integers as a list; None stays None."""
    return None if tensor is None else [int(one) for one in tensor.reshape(-1).tolist()]


@operator("Shape", by_shape=True)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Return the sizes of the axes from `start` to `end`, int64 on the CPU."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size", by_shape=True)
def size(x: Tensor) -> Tensor:
    """Return the number of elements, int64 on the CPU."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


@operator("Reshape", host={1})
def reshape(x: Tensor, sizes: Tensor, *, allowzero: int = 0) -> Tensor:
    """Give x other sizes: −1 is what is left, 0 the size that x has there (or none, with `allowzero`)."""
    wanted = sizes.tolist()
    if not allowzero:
        wanted = [x.shape[at] if one == 0 else one for at, one in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Transpose")
def transpose(x: Tensor, *, perm: tuple[int, ...] | None = None) -> Tensor:
    """Reorder the axes; without `perm` reverse them."""
    return x.permute(perm if perm is not None else tuple(reversed(range(x.ndim))))


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Join the axes before `axis`, and those from it on, to a matrix."""
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


@operator("Squeeze", host={1})
def squeeze(x: Tensor, at: Tensor | None = None, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """Drop the named axes of size 1, or all of them; axes as an input (opset 13) or as an attribute."""
    found = axes if at is None else integers(at)
    if found is None:
        return x.squeeze()
    for one in found:
        if x.shape[one] != 1:
            raise ValueError(f"axis {one} of {tuple(x.shape)} is not of size 1")
    return x.squeeze(tuple(found))


@operator("Unsqueeze", host={1})
def unsqueeze(x: Tensor, at: Tensor | None = None, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """Insert axes of size 1 where the result shall have them; axes as an input (opset 13) or as an attribute."""
    wanted = (axes if at is None else integers(at)) or ()
    rank = x.ndim + len(wanted)
    for one in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(one)
    return x


@operator("Concat")
def concat(*tensors: Tensor, axis: int) -> Tensor:
    """Join tensors along an axis."""
    return torch.cat(tensors, axis)


@operator("Split", host={1})
def split(
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int = 0,
    split: tuple[int, ...] | None = None,
    outputs: int,
) -> Made:
    """Cut along an axis into the given sizes, or into equal parts of which the last may be smaller."""
    given = split if sizes is None else integers(sizes)
    if given is None:
        parts, whole = num_outputs or outputs, x.shape[axis]
        each = -(-whole // parts)
        given = [each] * (parts - 1) + [whole - each * (parts - 1)]
    return tuple(torch.split(x, list(given), axis))


@operator("Slice", host={1, 2, 3, 4}, since=10)
def slice_(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """Cut each named axis as Python's slices do, also backwards."""
    first, last = starts.tolist(), ends.tolist()
    along = integers(axes) or list(range(len(first)))
    by = integers(steps) or [1] * len(first)
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        wanted = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            stop = wanted.start + len(wanted) * step
            x = x.movedim(axis, 0)[wanted.start : min(stop, x.shape[axis]) : step].movedim(0, axis)
        else:
            backwards = wanted.start + step * torch.arange(len(wanted), device=x.device)
            x = x.index_select(axis, backwards)
    return x


@operator("Expand", host={1})
def expand(x: Tensor, sizes: Tensor) -> Tensor:
    """Broadcast x with the sizes; a size of 1 keeps x's own."""
    wanted = sizes.tolist()
    whole = [1] * (x.ndim - len(wanted)) + wanted
    kept = [1] * (len(whole) - x.ndim) + list(x.shape)
    return x.expand([old if new == 1 else new for new, old in zip(whole, kept, strict=True)])


@operator("Tile", host={1})
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat x along each axis."""
    return x.repeat(repeats.tolist())


@operator("Pad", host={1, 2, 3}, since=11)
def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Add at both ends of each axis (a negative number cuts): a constant, or elements of x as `mode` says."""
    sizes, along = pads.tolist(), integers(axes) or list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for at, axis in enumerate(along):
        before[axis], after[axis] = sizes[at], sizes[at + len(along)]
    if mode == "constant":
        both = [one for axis in reversed(range(x.ndim)) for one in (before[axis], after[axis])]
        return F.pad(x, both, value=0 if value is None else value.item())
    for axis, length in enumerate(x.shape):
        if before[axis] or after[axis]:
            places = torch.arange(-before[axis], length + after[axis], device=x.device)
            x = x.index_select(axis, _inside(places, length, mode))
    return x


def _inside(places: Tensor, length: int, mode: str) -> Tensor:
    """Places along an axis, also outside of it → which of its elements stands there."""
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places.remainder(length)
    if mode == "reflect":
        period = max(2 * (length - 1), 1)
        folded = places.remainder(period)
        return torch.minimum(folded, period - folded) if length > 1 else torch.zeros_like(places)
    raise Unsupported(f"mode={mode!r}", "constant, edge, reflect and wrap")


@operator("DepthToSpace", since=11)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """[B, C · b², H, W] → [B, C, H · b, W · b]; the channels hold the block before (DCR) or behind (CRD) the depth."""
    batch, channels, height, width = x.shape
    depth = channels // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(batch, blocksize, blocksize, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(batch, depth, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, depth, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """[B, C, H · b, W · b] → [B, b² · C, H, W]."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)
