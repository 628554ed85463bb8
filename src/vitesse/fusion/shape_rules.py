"""Shape arithmetic → constants, the dynamic batch kept; negative Gather indices → positive ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, constant


@dataclass(frozen=True)
class _Target:
    data: ir.Value
    dims: tuple[int, ...]


class _ConstantTarget(FusionRule):
    """Reshape to a computed shape → Reshape to a constant one.

    -1 stands for the one dimension that is not static, 0 for one that is copied from the same place of the
    input. (onnxscript's rule of the same purpose sets allowzero, which keeps runtimes from fusing Reshapes.)
    """

    def pattern(self, op: Any, data: Any, shape: Any) -> Any:
        return op.Reshape(data, shape, _outputs=["reshaped"])

    def plan(self, *, data: ir.Value, shape: ir.Value, reshaped: ir.Value) -> _Target:
        if ir.convenience.get_const_tensor(shape) is not None:
            raise LeftAlone("")
        if reshaped.shape is None:
            raise LeftAlone("the shape of the result is not known")
        dims = [dim if isinstance(dim, int) else None for dim in reshaped.shape]
        if 0 in dims:
            raise LeftAlone("the result is empty")
        open_axes = [axis for axis, dim in enumerate(dims) if dim is None]
        copied = [axis for axis in open_axes if len(open_axes) > 1 and _same(data, reshaped, axis)]
        free = [axis for axis in open_axes if axis not in copied]
        if len(free) > 1:
            raise LeftAlone(f"{len(free)} dimensions of the result are not static")
        return _Target(data, tuple(0 if a in copied else -1 if d is None else d for a, d in enumerate(dims)))

    def build(self, op: Any, plan: _Target) -> Any:
        dims = np.array(plan.dims, dtype=np.int64)
        return op.Reshape(plan.data, op.Constant(value=ir.tensor(dims)))


def _same(data: ir.Value, reshaped: ir.Value, axis: int) -> bool:
    assert reshaped.shape is not None
    if data.shape is None or axis >= len(data.shape):
        return False
    dim = data.shape[axis]
    return isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim == reshaped.shape[axis]


@dataclass(frozen=True)
class _Indices:
    data: ir.Value
    indices: NDArray[Any]
    axis: int


class _PositiveIndices(FusionRule):
    """Gather(x, -1) → Gather(x, size - 1) where the size is static: not every runtime takes negative indices."""

    def pattern(self, op: Any, data: Any, indices: Any) -> Any:
        return op.Gather(data, indices, _outputs=["gathered"])

    def plan(self, *, data: ir.Value, indices: ir.Value, gathered: ir.Value) -> _Indices:
        array = constant(indices)
        if array is None or (array >= 0).all():
            raise LeftAlone("")
        node = gathered.producer()
        assert node is not None
        axis = node.attributes.get_int("axis", 0) or 0
        size = None if data.shape is None else data.shape[axis]
        if not isinstance(size, int):
            raise LeftAlone("a negative index into an axis whose size is not static")
        return _Indices(data, np.where(array < 0, array + size, array).astype(array.dtype), axis)

    def build(self, op: Any, plan: _Indices) -> Any:
        return op.Gather(plan.data, op.Constant(value=ir.tensor(plan.indices)), axis=plan.axis)


class _StaticDimensions(FusionRule):
    """Gather or Slice of a Shape that reads static dimensions only → constant.

    (onnxscript folds a Shape that is static as a whole, and follows Gather for vectors of indices.)
    """

    def __init__(self, reader: str) -> None:
        # The Shape stays where something else reads it too.
        super().__init__(f"static_dimensions_{reader}", remove_nodes=False)
        self._reader = reader

    def pattern(self, op: Any, data: Any, first: Any) -> Any:
        dims = op.Shape(data, _outputs=["dims"])
        if self._reader == "gather":
            return op.Gather(dims, first, _outputs=["read"])
        return op.Slice(dims, first, _allow_other_inputs=True, _outputs=["read"])

    def plan(self, *, data: ir.Value, first: ir.Value, dims: ir.Value, read: ir.Value) -> NDArray[Any]:
        shape_node, node = dims.producer(), read.producer()
        assert shape_node is not None and node is not None
        if data.shape is None or shape_node.attributes.keys() & {"start", "end"}:
            raise LeftAlone("")
        arguments = [constant(value) for value in node.inputs[1:]]
        if any(argument is None for argument in arguments):
            raise LeftAlone("the place at which a shape is read is not constant")
        places = np.arange(len(data.shape))
        if self._reader == "gather":
            places = np.take(places, np.asarray(arguments[0]))
        else:
            start, end = (int(argument.item()) for argument in arguments[:2] if argument is not None)
            step = int(arguments[3].item()) if len(arguments) > 3 and arguments[3] is not None else 1
            places = places[start:end:step]
        sizes = [data.shape[int(place)] for place in places.reshape(-1)]
        if not all(isinstance(size, int) for size in sizes):
            raise LeftAlone("")
        return np.array(sizes, dtype=np.int64).reshape(places.shape)

    def build(self, op: Any, plan: NDArray[Any]) -> Any:
        return op.Constant(value=ir.tensor(plan))


CONSTANT_SHAPES = Fusion(
    "shape_arithmetic",
    (_StaticDimensions.rule("gather"), _StaticDimensions.rule("slice"), _ConstantTarget.rule()),
)
POSITIVE_INDICES = Fusion("gather_indices", (_PositiveIndices.rule(),))
