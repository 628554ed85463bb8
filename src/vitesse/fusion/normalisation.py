"""What layer norm and RMS norm share: how their last steps are arranged, and which axes and shapes qualify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.pattern import OrValue

from vitesse.fusion.rules import LeftAlone, constant, either, scalar

# (form, operands of the root swapped), longest first so that a bare core never takes a scaled one apart.
ARRANGEMENTS: tuple[tuple[str, bool], ...] = (
    ("scaled", False),
    ("scaled", True),
    ("scaled_inverse", False),
    ("scaled_inverse", True),
    ("product", False),
    ("product", True),
    ("quotient", False),
)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def mean_of(op: Any, value: Any, name: str) -> Any:
    """Pattern of ReduceMean with the axes as attribute (opset < 18) or input; binds its output as `name`."""
    return op.ReduceMean(value, _allow_other_inputs=True, _outputs=[name])


def square(op: Any, value: Any) -> Any:
    """Pattern of value²."""
    return OrValue([op.Pow(value, 2), op.Mul(value, value)])


def deviation_root(op: Any, variance: Any, epsilon: Any) -> Any:
    """Pattern of sqrt(variance + ε)."""
    return op.Sqrt(either(op.Add, variance, epsilon))


def scaled(op: Any, numerator: Any, root: Any, one: Any, scale: Any) -> Any:
    """Pattern of numerator / root · scale in every arrangement; not for the root of a pattern."""
    inverse = _inverse(op, root, one)
    normalised = OrValue([op.Div(numerator, root), either(op.Mul, numerator, inverse)])
    return OrValue(
        [either(op.Mul, normalised, scale), either(op.Mul, numerator, either(op.Mul, inverse, scale))]
    )


def arranged(op: Any, form: str, swapped: bool, numerator: Any, root: Any, one: Any, scale: Any) -> Any:
    """Pattern of one arrangement of `ARRANGEMENTS`, usable as the root of a pattern."""
    inverse = _inverse(op, root, one)

    def product(left: Any, right: Any) -> Any:
        return op.Mul(right, left) if swapped else op.Mul(left, right)

    shapes: dict[str, Callable[[], Any]] = {
        "scaled": lambda: product(
            OrValue([op.Div(numerator, root), either(op.Mul, numerator, inverse)]), scale
        ),
        "scaled_inverse": lambda: product(numerator, either(op.Mul, inverse, scale)),
        "product": lambda: product(numerator, inverse),
        "quotient": lambda: op.Div(numerator, root),
    }
    return shapes[form]()


def _inverse(op: Any, root: Any, one: Any) -> Any:
    return OrValue([op.Reciprocal(root), op.Div(one, root)])


def checked_epsilon(x: ir.Value, one: ir.Value | None, epsilon: ir.Value) -> float:
    """Return ε after checking the input's type and the constants around it; raises LeftAlone."""
    if x.dtype not in _FLOATS:
        raise LeftAlone(f"the input is {x.dtype}, not float32 or float16")
    if one is not None and scalar(one) != 1.0:
        raise LeftAlone("the numerator over the standard deviation is not the constant 1")
    number = scalar(epsilon)
    if number is None:
        raise LeftAlone("epsilon is not a constant scalar")
    if number < 0:
        raise LeftAlone(f"epsilon is negative ({number:g})")
    return number


def normalised_sizes(x: ir.Value, means: Sequence[ir.Value]) -> tuple[int, ...]:
    """Sizes of the axes all `means` reduce; raises LeftAlone unless they are the last axes and static."""
    if x.shape is None:
        raise LeftAlone("the shape of the input is not known")
    rank = len(x.shape)
    reduced = {_reduced_axes(mean, rank) for mean in means}
    if len(reduced) != 1:
        raise LeftAlone("mean and variance are taken over different axes")
    axes = reduced.pop()
    if not axes or axes != tuple(range(rank - len(axes), rank)):
        raise LeftAlone(f"it normalises axes {list(axes)} of {rank}, not the last ones")
    sizes = tuple(size for axis in axes if isinstance(size := x.shape[axis], int))
    if len(sizes) != len(axes):
        raise LeftAlone("the normalised size is not static")
    return sizes


def _reduced_axes(mean: ir.Value, rank: int) -> tuple[int, ...]:
    node = mean.producer()
    assert node is not None
    if node.attributes.get_int("keepdims", 1) != 1:
        raise LeftAlone("the mean drops its axes (keepdims is 0)")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1])
        if given is None:
            raise LeftAlone("the axes of the mean are not constant")
        axes = [int(axis) for axis in given.reshape(-1)]
    else:
        axes = list(node.attributes.get_ints("axes", []))
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        raise LeftAlone("the mean reduces nothing (no axes and noop_with_empty_axes)")
    return tuple(sorted({axis % rank for axis in axes} if axes else range(rank)))


def parameter(op: Any, value: ir.Value | None, sizes: tuple[int, ...], like: ir.Value) -> Any:
    """A scale or bias of exactly `sizes` and the type of `like`, after `check_parameter`; ones where absent."""
    array = constant(value)
    if value is None or array is None:
        assert like.dtype is not None
        return op.Constant(value=ir.tensor(np.ones(sizes, dtype=like.dtype.numpy())))
    if array.shape == sizes:
        return value
    vector = np.ascontiguousarray(np.broadcast_to(_without_leading_ones(array, len(sizes)), sizes))
    return op.Constant(value=ir.tensor(vector), _outputs=[f"{value.name}_vector"])


def check_parameter(label: str, value: ir.Value | None, sizes: tuple[int, ...], rank: int) -> None:
    """Raise LeftAlone unless `value` is absent or a constant that varies over the normalised axes only."""
    if value is None:
        return
    array = constant(value)
    if array is None:
        raise LeftAlone(f"the {label} is not a constant")
    core = _without_leading_ones(array, len(sizes))
    fits = array.ndim <= rank and core.ndim <= len(sizes)
    if not fits or any(a not in (1, b) for a, b in zip(core.shape[::-1], sizes[::-1], strict=False)):
        raise LeftAlone(f"the {label} has shape {list(array.shape)}, the normalised axes have {list(sizes)}")


def _without_leading_ones(array: np.ndarray[Any, Any], rank: int) -> np.ndarray[Any, Any]:
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array
