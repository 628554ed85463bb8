"""Resize of static sizes → one Gather (nearest) or one product with a constant matrix (all else) per resized axis.

Interpolation is linear in the pixels and works along one axis after the other, so that each axis is a matrix. Its
entries are read off ONNX Runtime's own answer to the unit matrix: every mode, coordinate transformation, antialiasing
filter and rounding of the standard comes out as that runtime, the numerical reference, has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.folding import evaluate
from vitesse.fusion.rules import Fusion, LeftAlone, constant
from vitesse.lowering.building import (
    OperatorRule,
    float_type,
    given,
    integers,
    length_of,
    numbers,
    rank_of,
    required,
    text,
    version,
)


@dataclass(frozen=True)
class _Plan:
    """`matrices`: axis, counted from behind → (output length, input length)."""

    x: ir.Value
    dtype: ir.DataType
    nearest: bool
    matrices: dict[int, NDArray[np.float32]]


class _Resize(OperatorRule):
    operator = "Resize"

    def prepare(self, node: ir.Node) -> _Plan:
        x, y = required(node, 0), node.outputs[0]
        rank, dtype, mode = rank_of(x), float_type(x), text(node, "mode", "nearest")
        if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            raise LeftAlone("it crops a region (tf_crop_and_resize)")
        resized = {}
        for axis, (came, wanted) in _lengths(node, x, y).items():
            if came is None or wanted is None:
                raise LeftAlone("the sizes are not static")
            resized[axis - rank] = _matrix(node, axis, came, wanted)
        if mode != "nearest" and min(resized, default=-1) < -2:
            raise LeftAlone("it interpolates along other axes than the last two")
        return _Plan(x, dtype, mode == "nearest", resized)

    def build(self, op: Any, plan: _Plan) -> Any:
        y = plan.x
        for axis, matrix in plan.matrices.items():
            if plan.nearest:
                y = op.Gather(y, integers(op, [int(row.argmax()) for row in matrix]), axis=axis)
            elif axis == -1:
                y = op.MatMul(y, numbers(op, np.ascontiguousarray(matrix.T), plan.dtype))
            else:
                y = op.MatMul(numbers(op, matrix, plan.dtype), y)
        return op.Identity(y) if not plan.matrices else y


def _lengths(node: ir.Node, x: ir.Value, y: ir.Value) -> dict[int, tuple[int | None, int | None]]:
    """Axis → (length before, after) of the axes that are resized."""
    if y.shape is None:
        raise LeftAlone("the sizes are not static")
    scales = _scales(node)
    pairs = {axis: (length_of(x, axis), length_of(y, axis)) for axis in range(rank_of(x))}
    if scales is not None:
        return {axis: pair for axis, pair in pairs.items() if scales[axis] != 1.0}
    return {axis: pair for axis, pair in pairs.items() if x.shape is None or x.shape[axis] != y.shape[axis]}


def _scales(node: ir.Node) -> dict[int, float] | None:
    """Axis → factor, None where lengths are given instead; raises LeftAlone where they are not constant."""
    place = 2 if version(node) >= 11 else 1
    value, sizes = given(node, place), given(node, 3)
    if value is None or length_of(value, 0) == 0:
        if sizes is None:
            raise LeftAlone("neither scales nor sizes are given")
        return None
    array = constant(value)
    if array is None:
        raise LeftAlone("the scales are not constant")
    factors = dict.fromkeys(range(rank_of(required(node, 0))), 1.0)
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else sorted(factors)
    return factors | {axis % len(factors): float(scale) for axis, scale in zip(axes, array, strict=True)}


def _matrix(node: ir.Node, axis: int, came: int, wanted: int) -> NDArray[np.float32]:
    """What resizing along one axis multiplies with: ONNX Runtime's Resize of the unit matrix, (wanted, came)."""
    scales = _scales(node)
    unit = np.eye(came, dtype=np.float32)[None, None]
    inputs: list[tuple[str, NDArray[Any]]] = [("unit", unit)]
    if scales is not None:
        inputs.append(("scales", np.array([1, 1, 1, scales[axis]], np.float32)))
    else:
        inputs.append(("sizes", np.array([1, 1, came, wanted], np.int64)))
    values: dict[str, ir.Value] = {name: ir.Value(name=name) for name, _ in inputs}
    kept = {key: attribute for key, attribute in node.attributes.items() if key not in _ABOUT_AXES}
    places: Sequence[ir.Value | None] = [values["unit"], None, values.get("scales"), values.get("sizes")]
    alone = ir.Node("", "Resize", places, kept.values(), num_outputs=1)
    alone.outputs[0].name = "matrix"
    (answer,) = evaluate(alone, dict(inputs), max(version(node), 11))
    if answer.shape != (1, 1, came, wanted):
        raise LeftAlone(f"the length {came} becomes {answer.shape[-1]}, not {wanted}")
    return np.ascontiguousarray(answer[0, 0].T.astype(np.float32))


_ABOUT_AXES = ("axes", "keep_aspect_ratio_policy")

LOWERING = Fusion("resize", (_Resize.rule(),), opset=13)
