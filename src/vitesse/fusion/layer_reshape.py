"""One layer through a Reshape: where the layers' axis, or the axis that has them outermost, was before."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.layer_parts import Layer, Passage, named, shape_of
from vitesse.fusion.rules import LeftAlone

Length = int | ir.SymbolicDim
_PRODUCT = re.compile(r"\w+(\*\w+)*")
_UNNAMED = "None"  # how a length without a name is written


def through_reshape(node: ir.Node, layer: Layer) -> Passage:
    """The Reshape for one layer; raises LeftAlone where the layers are not a factor of their own."""
    source, target = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    before = list(target[: layer.axis])
    axis = next((at for at in range(len(source) + 1) if same_product(source[:at], before)), len(source))
    while axis < len(source) - 1 and source[axis] == 1:
        axis += 1
    if axis == len(source) or not _leads(source[axis:], layer.length, target[layer.axis :]):
        raise LeftAlone(f"{named(node)} merges the layers with other axes")
    found = replace(layer, axis=axis, leading=source[axis] != layer.length)
    rest_source = [d for at, d in enumerate(source) if at != axis or found.leading]
    rest_target = [d for at, d in enumerate(target) if at != layer.axis or layer.leading]
    return Passage((found, _target(node, rest_source, rest_target, found, layer)))


def factors(dims: Iterable[Length]) -> tuple[int, Counter[str]]:
    """A product of lengths as its number and its symbols; "6*batch" counts as 6 times batch."""
    number, symbols = 1, Counter[str]()
    for dim in dims:
        text = str(dim if isinstance(dim, int) else dim.value).replace(" ", "")
        for factor in text.split("*") if _PRODUCT.fullmatch(text) else [text]:
            if factor.isdigit():
                number *= int(factor)
            else:
                symbols[factor] += 1
    return number, symbols


def same_product(one: Iterable[Length], other: Iterable[Length]) -> bool:
    """Whether two products of lengths are known to be the same number."""
    (a, symbols), (b, others) = factors(one), factors(other)
    return a == b and symbols == others and _UNNAMED not in symbols


def _leads(source: Sequence[Length], length: int, target: Sequence[Length]) -> bool:
    """Whether the first axis of `source` has the layers outermost, where `target` is the same numbers and has them.

    It has when what is behind that axis divides what is behind the layers.
    """
    if isinstance(source[0], int):
        return source[0] % length == 0
    (inner, symbols), (whole, others) = factors(source[1:]), factors(target)
    return _UNNAMED not in symbols and not symbols - others and whole % (length * inner) == 0


def _target(
    node: ir.Node,
    source: Sequence[Length],
    target: Sequence[Length],
    found: Layer,
    layer: Layer,
) -> NDArray[np.int64]:
    """Shape to give to a Reshape of one layer: -1 for what is not static, 0 for what is copied from the same place."""
    dims: list[int] = []
    for at, dim in enumerate(target):
        shortened = layer.leading and at == layer.axis
        if isinstance(dim, int):
            dims.append(dim // layer.length if shortened else dim)
            continue
        same = at < len(source) and source[at] == dim and dim.value is not None
        copied = same and shortened == (found.leading and at == found.axis)
        dims.append(0 if copied else -1)
    if dims.count(-1) > 1 or 0 in target:
        raise LeftAlone(f"the shape behind {named(node)} is not static enough")
    return np.array(dims, np.int64)
