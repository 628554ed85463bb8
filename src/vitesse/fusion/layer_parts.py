"""One layer of a stack, and what an operator needs to compute it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layer:
    """Entry `index` of `length` along `axis` (0..rank-1) of a tensor.

    leading: the axis holds (length · rows) entries with the layers outermost, as after Reshape (L, B, …) → (L·B, …);
    picking a layer then shortens the axis instead of removing it.
    """

    axis: int
    index: int
    length: int
    leading: bool = False

    def at(self, axis: int) -> Layer:
        """The same layer on another axis."""
        return replace(self, axis=axis)


@dataclass(frozen=True)
class Squeezed:
    """An input of length 1 on this axis, which serves all layers alike and loses the axis."""

    axis: int


# What stands at an input when one layer is computed alone: itself, its layer, itself without the axis, or a constant.
Part = ir.Value | Layer | Squeezed | NDArray[np.int64] | None


@dataclass(frozen=True)
class Passage:
    """An operator for one layer alone: its inputs, and the attributes that differ."""

    inputs: tuple[Part, ...]
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)

    def layers(self, node: ir.Node) -> Iterator[tuple[ir.Value, Layer]]:
        """The inputs of `node` of which only a layer is needed."""
        for source, part in zip(node.inputs, self.inputs, strict=False):
            if isinstance(part, Layer) and source is not None:
                yield source, part


@dataclass(frozen=True)
class Elsewhere:
    """The layer is a layer of another tensor as it is: the operator only picks or joins entries of that axis."""

    value: ir.Value
    layer: Layer


def named(node: ir.Node) -> str:
    """The operator and its name, for messages."""
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def shape_of(value: ir.Value | None) -> ir.Shape:
    """The shape of a value that is known to have one."""
    assert value is not None and value.shape is not None
    return value.shape
