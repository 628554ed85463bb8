"""GridSample → the corners around each point, gathered and weighted (Jaderberg et al. 2015, arXiv:1506.02025, eq. 5).

A point in −1..1 becomes a place in pixels: (g + 1) / 2 · (n − 1) with `align_corners`, else ((g + 1) · n − 1) / 2. Its
2 corners along each axis carry the weights 1 − f and f, f being the place's fraction. Outside the image a corner
weighs nothing (`zeros`), or the place is moved to the rim first (`border`). For images and volumes alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion, LeftAlone
from vitesse.lowering.building import (
    OperatorRule,
    float_type,
    integer,
    integers,
    length_of,
    numbers,
    rank_of,
    required,
    text,
    version,
)

_LINEAR = ("bilinear", "linear")  # up to opset 19 and from 20 on
_PADDINGS = ("zeros", "border")


@dataclass(frozen=True)
class _Plan:
    """`lengths`: of the image's spatial axes; `points`: of the grid's; None where they are not static."""

    x: ir.Value
    grid: ir.Value
    dtype: ir.DataType
    lengths: tuple[int | None, ...]
    points: tuple[int | None, ...]
    opset: int
    nearest: bool
    padded: bool
    aligned: bool


class _GridSample(OperatorRule):
    operator = "GridSample"

    def prepare(self, node: ir.Node) -> _Plan:
        x, grid = required(node, 0), required(node, 1)
        rank, dtype = rank_of(x), float_type(x)
        mode, padding = text(node, "mode", "linear"), text(node, "padding_mode", "zeros")
        if mode not in (*_LINEAR, "nearest"):
            raise LeftAlone(f"mode {mode!r} reads more than the corners around a point")
        if padding not in _PADDINGS:
            raise LeftAlone(f"padding mode {padding!r}")
        if grid.dtype != dtype:
            raise LeftAlone("the grid has another type than the image")
        return _Plan(
            x,
            grid,
            dtype,
            tuple(length_of(x, axis) for axis in range(2, rank)),
            tuple(length_of(grid, axis) for axis in range(1, rank_of(grid) - 1)),
            version(node),
            mode == "nearest",
            padding == "zeros",
            bool(integer(node, "align_corners", 0)),
        )

    def build(self, op: Any, plan: _Plan) -> Any:
        axes = range(len(plan.lengths))
        extents = [_Extent.of(op, plan, axis) for axis in axes]
        # Places are computed in float32 also for float16, which counts in steps of 2 from 2048 on.
        # (N, points, 1) for each axis; the grid's last axis runs from the innermost axis outwards.
        flat = op.Reshape(plan.grid, integers(op, [0, -1, len(extents)]))
        places = list(_taken_apart(op, _typed(op, flat, plan, wide=True), len(extents), plan.opset))[::-1]
        corners = [_corners(op, plan, place, extent) for place, extent in zip(places, extents, strict=True)]
        chosen: list[tuple[Any, Any]] = [(None, None)]
        for axis in axes:
            chosen = [
                (_weighted(op, weight, other), _indexed(op, index, extents[axis].length, at))
                for weight, index in chosen
                for other, at in corners[axis]
            ]
        weights = op.Concat(*(weight for weight, _ in chosen), axis=2)
        indices = op.Concat(*(index for _, index in chosen), axis=2)
        return _gathered(op, plan, weights, op.Cast(indices, to=int(ir.DataType.INT64)))


@dataclass(frozen=True)
class _Extent:
    """Length of a spatial axis and its last index, as floats; read from the image's shape where not static."""

    length: Any
    last: Any

    @classmethod
    def of(cls, op: Any, plan: _Plan, axis: int) -> _Extent:
        static = plan.lengths[axis]
        if static is not None:
            return cls(*(numbers(op, value, ir.DataType.FLOAT) for value in (static, static - 1)))
        length = op.Gather(op.Shape(plan.x), integers(op, axis + 2), axis=0)
        real = op.Cast(length, to=int(ir.DataType.FLOAT))
        return cls(real, op.Sub(real, numbers(op, 1.0, ir.DataType.FLOAT)))


def _typed(op: Any, value: Any, plan: _Plan, *, wide: bool) -> Any:
    """`value` in float32, or back in the type of the image."""
    if plan.dtype == ir.DataType.FLOAT:
        return value
    return op.Cast(value, to=int(ir.DataType.FLOAT if wide else plan.dtype))


def _taken_apart(op: Any, flat: Any, count: int, opset: int) -> Sequence[Any]:
    if opset >= 18:
        parts: Sequence[Any] = op.Split(flat, axis=2, num_outputs=count, _outputs=count)
    else:
        parts = op.Split(flat, integers(op, [1] * count), axis=2, _outputs=count)
    return parts


def _corners(op: Any, plan: _Plan, place: Any, extent: _Extent) -> list[tuple[Any, Any]]:
    """(weight, index as a float inside the image) of the corners along one axis."""
    one, half, zero = (numbers(op, value, ir.DataType.FLOAT) for value in (1.0, 0.5, 0.0))
    last = extent.last
    edge_to_edge = op.Mul(op.Add(place, one), last if plan.aligned else extent.length)
    pixel = op.Mul(edge_to_edge if plan.aligned else op.Sub(edge_to_edge, one), half)
    if not plan.padded:
        pixel = op.Clip(pixel, zero, last)
    if plan.nearest:
        return [_inside(op, plan, one, op.Round(pixel), last)]
    low = op.Floor(pixel)
    fraction = op.Sub(pixel, low)
    return [
        _inside(op, plan, op.Sub(one, fraction), low, last),
        _inside(op, plan, fraction, op.Add(low, one), last),
    ]


def _inside(op: Any, plan: _Plan, weight: Any, corner: Any, last: Any) -> tuple[Any, Any]:
    """A corner outside weighs nothing, and pixel 0 is read in its place, for the gather must read something.

    Where, not a product: the weight of a point that is infinite or NaN is NaN. With `border` only the second corner
    of a place on the rim is outside, and weighs nothing already.
    """
    zero = numbers(op, 0.0, ir.DataType.FLOAT)
    inside = op.Equal(corner, op.Clip(corner, zero, last))
    return (op.Where(inside, weight, zero) if plan.padded else weight), op.Where(inside, corner, zero)


def _weighted(op: Any, weight: Any, other: Any) -> Any:
    return other if weight is None else op.Mul(weight, other)


def _indexed(op: Any, index: Any, size: Any, at: Any) -> Any:
    """Index into the flattened image: exact in float32 up to 2²⁴ pixels."""
    return at if index is None else op.Add(op.Mul(index, size), at)


def _gathered(op: Any, plan: _Plan, weights: Any, indices: Any) -> Any:
    """Sum of weight · pixel over the corners, (N, points, corners) each → (N, C, points of the grid …)."""
    flat = op.Reshape(plan.x, integers(op, [0, 0, -1]))
    pixels = op.Transpose(flat, perm=[0, 2, 1])
    read = op.GatherND(pixels, op.Unsqueeze(indices, integers(op, [3])), batch_dims=1)
    row = op.Unsqueeze(_typed(op, weights, plan, wide=False), integers(op, [2]))
    summed = op.Squeeze(op.MatMul(row, read), integers(op, [2]))
    by_channel = op.Transpose(summed, perm=[0, 2, 1])
    shape = [0, 0, *(-1 if length is None else length for length in plan.points)]
    if shape.count(-1) <= 1:
        return op.Reshape(by_channel, integers(op, shape))
    start, end = integers(op, [1]), integers(op, [1 + len(plan.points)])
    points = op.Slice(op.Shape(plan.grid), start, end)
    return op.Reshape(by_channel, op.Concat(integers(op, [0, 0]), points, axis=0))


LOWERING = Fusion("grid_sample", (_GridSample.rule(),), opset=16)
