"""Images at other places: Resize and GridSample."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.operators.operator import Unsupported, operator
from vitesse.backends.torch_cuda.operators.shapes import integers

_INTERPOLATIONS = {
    ("linear", 1): "linear",
    ("linear", 2): "bilinear",
    ("linear", 3): "trilinear",
    ("cubic", 2): "bicubic",
}
_ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}
_interpolate: Callable[..., Tensor] = F.interpolate  # has no types of its own
_TORCH_CUBIC = -0.75
_GRID_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


@operator("Resize", host={1, 2, 3}, since=11)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = _TORCH_CUBIC,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resample to other sizes, by the nearest element, linearly or by cubics."""
    if antialias:
        raise Unsupported("antialias=1", "antialias=0")
    if keep_aspect_ratio_policy != "stretch":
        raise Unsupported(f"keep_aspect_ratio_policy={keep_aspect_ratio_policy!r}", "stretch")
    factors, wanted = _targets(x, scales, sizes, axes)
    if mode == "nearest":
        for axis, size in enumerate(wanted):
            if (size, factors[axis]) != (x.shape[axis], 1.0):
                new = torch.arange(size, dtype=torch.float32, device=x.device)
                places = _nearest(
                    new, x.shape[axis], factors[axis], coordinate_transformation_mode, nearest_mode
                )
                x = x.index_select(axis, places)
        return x
    if mode == "cubic" and (cubic_coeff_a != _TORCH_CUBIC or exclude_outside):
        raise Unsupported(
            f"cubic_coeff_a={cubic_coeff_a}, exclude_outside={exclude_outside}",
            "cubic_coeff_a=-0.75, exclude_outside=0",
        )
    return _interpolated(
        x, factors, wanted, mode, coordinate_transformation_mode, by_scale=sizes is None or not sizes.numel()
    )


@operator("GridSample", since=16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Sample x [B, C, H, W] at the places of the grid [B, H', W', 2], −1 and 1 being the borders."""
    if mode not in _GRID_MODES:
        raise Unsupported(f"mode={mode!r}", ", ".join(_GRID_MODES))
    return F.grid_sample(x, grid, _GRID_MODES[mode], padding_mode, bool(align_corners))


def _targets(
    x: Tensor, scales: Tensor | None, sizes: Tensor | None, axes: tuple[int, ...] | None
) -> tuple[list[float], list[int]]:
    """Scale and size of every axis, from whichever of the two is given; an empty tensor counts as absent."""
    along = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
    factors, wanted = [1.0] * x.ndim, list(x.shape)
    if sizes is not None and sizes.numel():
        for axis, size in zip(along, integers(sizes) or (), strict=True):
            wanted[axis], factors[axis] = size, size / x.shape[axis]
    elif scales is not None and scales.numel():
        for axis, factor in zip(along, scales, strict=True):  # float32, as runtimes round
            wanted[axis], factors[axis] = int(x.shape[axis] * factor), float(factor)
    else:
        raise Unsupported("neither scales nor sizes", "one of them")
    return factors, wanted


def _nearest(new: Tensor, length: int, factor: float, coordinates: str, rounding: str) -> Tensor:
    """Which of the `length` elements of an axis each of the new ones, counted from 0, takes."""
    size = len(new)
    if coordinates == "asymmetric":
        old = new / factor
    elif coordinates == "align_corners":
        old = new * (length - 1) / max(size - 1, 1)
    elif coordinates in ("half_pixel", "pytorch_half_pixel"):
        old = (new + 0.5) / factor - 0.5 if size > 1 or coordinates == "half_pixel" else torch.zeros_like(new)
    else:
        raise Unsupported(
            f"coordinate_transformation_mode={coordinates!r}",
            "asymmetric, align_corners, half_pixel and pytorch_half_pixel with mode='nearest'",
        )
    if rounding not in _ROUNDINGS:
        raise Unsupported(f"nearest_mode={rounding!r}", ", ".join(_ROUNDINGS))
    return _ROUNDINGS[rounding](old).clamp(0, length - 1).to(torch.int64)


def _interpolated(
    x: Tensor, factors: list[float], wanted: list[int], mode: str, coordinates: str, *, by_scale: bool
) -> Tensor:
    spatial = x.ndim - 2
    if (mode, spatial) not in _INTERPOLATIONS:
        raise Unsupported(f"mode={mode!r} on {x.ndim} axes", "linear on 3 to 5 axes and cubic on 4")
    if wanted[:2] != list(x.shape[:2]):
        raise Unsupported(f"mode={mode!r} across images or channels", "the axes behind the first two")
    corners = coordinates == "align_corners"
    # With one result in an axis, PyTorch's form takes its first element and half_pixel its middle.
    shrunk = coordinates == "pytorch_half_pixel" and 1 in wanted[2:]
    if shrunk or coordinates not in ("align_corners", "half_pixel", "pytorch_half_pixel"):
        raise Unsupported(
            f"coordinate_transformation_mode={coordinates!r}",
            f"half_pixel and align_corners with mode={mode!r}",
        )
    how = _INTERPOLATIONS[mode, spatial]
    # torch rounds the sizes in float64; where that gives others, a scale is the ratio of the sizes but for rounding.
    if by_scale and wanted == [int(size * factor) for size, factor in zip(x.shape, factors, strict=True)]:
        return _interpolate(
            x, scale_factor=factors[2:], mode=how, align_corners=corners, recompute_scale_factor=False
        )
    return _interpolate(x, wanted[2:], mode=how, align_corners=corners)
