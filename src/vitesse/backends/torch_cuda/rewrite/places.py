"""Where the elements of a tensor lie in the one it was taken from, by numpy's own strides and without any element.

An array of this type stands for a tensor. Nothing ever reads or writes it, so that it costs addresses, not memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.torch_cuda.rewrite.layer import number, shape_of
from vitesse.backends.torch_cuda.rewrite.nodes import attribute, constant, given, is_op
from vitesse.backends.torch_cuda.rewrite.views import RESHAPES, permutation

Places = NDArray[np.uint8]
VIEWS = ("Transpose", "Slice", "Split", "Gather", *RESHAPES)


def places_of(shape: Sequence[int]) -> Places:
    """The places of a tensor that lies in memory as its shape says."""
    return np.empty(tuple(shape), np.uint8)


def start(places: Places) -> int:
    """The address of the first element; differences of two are numbers of elements."""
    return int(places.__array_interface__["data"][0])


def same(one: Places, other: Places) -> bool:
    """Whether two views of one tensor have the same elements in the same order; axes of length 1 lie anywhere."""
    strides = [
        [stride for stride, length in zip(view.strides, view.shape, strict=True) if length > 1]
        for view in (one, other)
    ]
    return one.shape == other.shape and start(one) == start(other) and strides[0] == strides[1]


def viewed(places: Places, node: ir.Node, output: ir.Value) -> Places | None:
    """The places of a node's output, given those of its first input; None where it moves elements, or may.

    Args:
        node: one of `VIEWS`.
        output: one of its outputs.
    """
    if is_op(node, "Transpose"):
        return places.transpose(permutation(node))
    if is_op(node, *RESHAPES):
        made = places.reshape(shape_of(output))
        return made if np.may_share_memory(made, places) else None
    if is_op(node, "Split"):
        return _split(places, node, output)
    if is_op(node, "Gather"):
        index = number(given(node, 1))
        if index is None:
            return None
        axis, at = int(attribute(node, "axis", 0)), int(index) % places.shape[int(attribute(node, "axis", 0))]
        return _part(places, axis, slice(at, at + 1)).reshape(shape_of(output))
    return _sliced(places, node)


def _split(places: Places, node: ir.Node, output: ir.Value) -> Places:
    axis = int(attribute(node, "axis", 0))
    ends = [*accumulate(shape_of(one)[axis] for one in node.outputs)]
    end = ends[list(node.outputs).index(output)]
    return _part(places, axis, slice(end - shape_of(output)[axis], end))


def _sliced(places: Places, node: ir.Node) -> Places | None:
    parameters = [constant(given(node, place)) for place in range(1, 5)]
    starts, ends, axes, steps = (None if one is None else [int(each) for each in one] for one in parameters)
    if starts is None or ends is None or (steps is not None and set(steps) != {1}):
        return None
    if any(given(node, place) is not None and parameters[place - 1] is None for place in (3, 4)):
        return None
    for axis, begin, end in zip(range(len(starts)) if axes is None else axes, starts, ends, strict=True):
        places = _part(places, axis, slice(begin, end))
    return places


def _part(places: Places, axis: int, part: slice) -> Places:
    view: Places = places[(slice(None),) * (axis % places.ndim) + (part,)]
    return view
