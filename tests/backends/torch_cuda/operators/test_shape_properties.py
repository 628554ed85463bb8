"""Shape operators on drawn shapes and numbers against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from vitesse.backends.torch_cuda.operators import OPERATORS  # noqa: E402

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
BOUNDS = st.one_of(st.integers(-8, 8), st.sampled_from([-(2**63), 2**63 - 1]))
STEPS = st.integers(-3, 3).filter(bool)


def computed(name: str, *inputs: Any, **attributes: Any) -> np.ndarray[Any, Any]:
    """Run an operator on arrays and lists of integers."""
    tensors = [torch.as_tensor(np.asarray(one)) for one in inputs]
    values = [ir.Value(name=f"x{at}") for at in range(len(tensors))]
    node = ir.Node(
        "", name, values, [ir.Attr(key, *_typed(one)) for key, one in attributes.items()], version=23
    )
    made = OPERATORS["", name](node, tensors)[0]
    assert made is not None
    return made.numpy()


def _typed(value: Any) -> tuple[ir.AttributeType, Any]:
    return (ir.AttributeType.INTS if isinstance(value, list) else ir.AttributeType.INT), value


def numbers(shape: list[int]) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, start=BOUNDS, end=BOUNDS, step=STEPS, data=st.data())
def test_slice_cuts_as_python_does(
    shape: list[int], start: int, end: int, step: int, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    cut = [slice(None)] * len(shape)
    cut[axis] = slice(start, end, step)
    expected = numbers(shape)[tuple(cut)]
    made = computed("Slice", numbers(shape), [start], [end], [axis], [step])
    assert made.shape == expected.shape
    assert np.array_equal(made, expected)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_transpose_moves_axes_as_numpy_does(shape: list[int], data: st.DataObject) -> None:
    perm = list(data.draw(st.permutations(range(len(shape)))))
    assert np.array_equal(computed("Transpose", numbers(shape), perm=perm), numbers(shape).transpose(perm))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_gather_picks_as_numpy_does(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    indices = np.array(data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=6))).reshape(
        1, -1
    )
    expected = np.take(numbers(shape), indices, axis)
    assert np.array_equal(computed("Gather", numbers(shape), indices, axis=axis), expected)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_pad_adds_and_cuts_as_numpy_does(shape: list[int], data: st.DataObject) -> None:
    ends = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in shape]
    pads = [one[0] for one in ends] + [one[1] for one in ends]
    padded = computed("Pad", numbers(shape), pads, np.float32(7))
    assert np.array_equal(padded, np.pad(numbers(shape), ends, constant_values=7))
    assert np.array_equal(computed("Pad", padded, [-one for one in pads]), numbers(shape))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_expand_broadcasts_as_numpy_does(shape: list[int], data: st.DataObject) -> None:
    ones = [data.draw(st.sampled_from([1, size])) for size in shape]
    sizes = data.draw(st.lists(st.integers(1, 3), max_size=2)) + shape
    expected = np.broadcast_to(numbers(ones), np.broadcast_shapes(ones, sizes))
    assert np.array_equal(computed("Expand", numbers(ones), sizes), expected)
    # A size of 1 keeps the tensor's own, also with fewer sizes than axes.
    assert np.array_equal(computed("Expand", numbers(shape), [1]), numbers(shape))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_reshape_keeps_the_order_and_fills_in_one_size(shape: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(shape) - 1))
    wanted = [0 if axis < at else size for axis, size in enumerate(shape)]
    wanted[at] = -1
    assert np.array_equal(computed("Reshape", numbers(shape), wanted), numbers(shape))
    assert np.array_equal(computed("Reshape", numbers(shape), [-1]), numbers(shape).reshape(-1))
