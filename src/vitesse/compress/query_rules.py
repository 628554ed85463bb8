"""How the axis of the queries passes through one operator: from which axes of its inputs an output's axis comes.

Most operators treat the entries of an axis apart in the same way as decoder layers on a stack, and share those rules
(`fusion.layer_axis`). Those that a stack of layers never meets stand here: rows of a matrix product, attention,
sampling, repeating, and selecting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitesse.fusion.layer_axis import through
from vitesse.fusion.layer_parts import Layer, Passage, named, shape_of
from vitesse.fusion.layer_reshape import factors, same_product
from vitesse.fusion.rules import LeftAlone

_PACKED_RANK = 3  # (batch, tokens, heads · width); with an axis for the heads it is 4


@dataclass(frozen=True)
class Place:
    """Axis `axis` of a tensor has one entry a query, or, merged with others, (outer · queries · inner) entries."""

    axis: int
    inner: int = 1

    def at(self, axis: int) -> Place:
        """The same on another axis."""
        return Place(axis, self.inner)


Source = tuple[int, Place]  # number of an input, and the place in it


def made_of(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    """The inputs that `place` of `output` comes from entry by entry; empty where it comes from none.

    Raises:
        LeftAlone: a shape that matters is not known.
    """
    if any(value is not None and value.shape is None for value in (*node.inputs, output)):
        raise LeftAlone(f"a shape at {named(node)} is not known")
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is not None:
        return rule(node, output, place, queries)
    try:
        passage = through(node, Layer(place.axis, 0, queries))
    except LeftAlone:
        return []
    if not isinstance(passage, Passage):
        return []
    return [
        (index, place.at(part.axis)) for index, part in enumerate(passage.inputs) if isinstance(part, Layer)
    ]


def contracted(node: ir.Node, index: int, place: Place) -> Source | None:
    """What an operator that sums over `place` of its input `index` multiplies it with; None: it does no such thing."""
    if place.inner != 1 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "MatMul":
        ranks = [len(shape_of(value)) for value in node.inputs]
        if min(ranks) < 2:
            return None
        ends = {0: ranks[0] - 1, 1: ranks[1] - 2}
        return (1 - index, Place(ends[1 - index])) if place.axis == ends[index] else None
    masked = len(node.inputs) > 3 and node.inputs[3] is not None
    if node.op_type == "Attention" and index in (1, 2) and _is_plain(node) and not masked:
        return (3 - index, place) if place.axis == _token_axis(node) else None
    return None


def reshaped(given: ir.Value, result: ir.Value, place: Place, queries: int) -> Place | None:
    """Where `place` of `given` is in `result`, the same numbers in the same order; None: not as a factor of its own.

    What lies behind the queries in memory stays the same product. An open first axis holds all that is in front of it.
    """
    source, target = list(shape_of(given)), list(shape_of(result))
    after, symbols = factors([place.inner, *source[place.axis + 1 :]])
    for axis in reversed(range(len(target))):
        rest, others = factors(target[axis + 1 :])
        if others - symbols or after % rest:
            continue
        inner = after // rest
        here, _ = factors([target[axis]])
        fits = same_product([inner, *target[axis + 1 :]], [place.inner, *source[place.axis + 1 :]])
        holds_rest = axis == 0 and not isinstance(target[0], int)
        if fits and (holds_rest or here % (queries * inner) == 0):
            return Place(axis, inner)
    return None


def _is_plain(node: ir.Node) -> bool:
    """Without causality, which tells the queries apart by their order, and without a cache."""
    causal = node.attributes.get_int("is_causal", 0)
    return not causal and len(node.outputs) == 1 and all(value is None for value in node.inputs[4:])


def _token_axis(node: ir.Node) -> int:
    return 1 if len(shape_of(node.inputs[0])) == _PACKED_RANK else 2


def _reshape(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    assert node.inputs[0] is not None
    found = reshaped(output, node.inputs[0], place, queries)
    return [] if found is None else [(0, found)]


def _matmul(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    left, right = (shape_of(value) for value in node.inputs)
    rank = len(shape_of(output))
    if len(right) == 1:
        return [(0, place)] if len(left) > 1 else []
    if len(left) == 1:
        return []
    if place.axis == rank - 2:
        return [(0, place.at(len(left) - 2))]
    if place.axis == rank - 1:
        return [(1, place.at(len(right) - 1))]
    return _aligned(node, output, place)


def _aligned(node: ir.Node, output: ir.Value, place: Place) -> list[Source]:
    """The operands of a broadcast that have the axis at its full length."""
    rank, found = len(shape_of(output)), []
    for index, value in enumerate(node.inputs):
        axis = place.axis - rank + len(shape_of(value))
        if axis >= 0 and shape_of(value)[axis] != 1:
            found.append((index, place.at(axis)))
    return found


def _gemm(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    turned: int | None = node.attributes.get_int("transA", 0)
    if place.axis != 0 or turned:
        return []
    added = node.inputs[2] if len(node.inputs) > 2 else None
    own = added is not None and len(shape_of(added)) > 1 and shape_of(added)[0] != 1
    return [(0, place), *([(2, place)] if own else [])]


def _attention(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    if not _is_plain(node) or place.axis != _token_axis(node) or place.inner != 1:
        return []
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    rows = -1 if mask is None else len(shape_of(mask)) - 2
    apart = rows >= 0 and shape_of(mask)[rows] != 1
    return [(0, place), *([(3, place.at(rows))] if apart else [])]


def _softmax(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    """Also over the queries themselves: what is left is normalised anew, as with a mask."""
    axis = (node.attributes.get_int("axis", -1) or 0) % len(shape_of(output))
    return [(0, place)] if place.inner == 1 or axis != place.axis else []


def _grid_sample(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    """(N, C, H, W) is sampled at the places of a grid (N, H, W, 2)."""
    return [(1, place.at(place.axis - 1))] if place.axis >= 2 else []


def _expand(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    given = shape_of(node.inputs[0])
    axis = place.axis - len(shape_of(output)) + len(given)
    return [(0, place.at(axis))] if axis >= 0 and given[axis] != 1 else []


def _tile(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    given = shape_of(node.inputs[0])[place.axis]
    return [(0, place)] if same_product([given], [shape_of(output)[place.axis]]) else []


def _gather_elements(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    """The result has the shape of the indices; other axes of the data are read entry by entry."""
    data = shape_of(node.inputs[0])
    axis = (node.attributes.get_int("axis", 0) or 0) % len(data)
    return [(1, place), *([(0, place)] if place.axis != axis else [])]


def _gather(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    data, indices = (shape_of(value) for value in node.inputs)
    axis = (node.attributes.get_int("axis", 0) or 0) % len(data)
    if place.axis < axis:
        return [(0, place)]
    if place.axis < axis + len(indices):
        return [(1, place.at(place.axis - axis))]
    return [(0, place.at(place.axis - len(indices) + 1))]


def _top_k(node: ir.Node, output: ir.Value, place: Place, queries: int) -> list[Source]:
    axis = (node.attributes.get_int("axis", -1) or 0) % len(shape_of(output))
    return [(0, place)] if place.axis != axis else []


_Rule = Callable[[ir.Node, ir.Value, Place, int], list[Source]]
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Attention": _attention,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "MatMul": _matmul,
    "Softmax": _softmax,
    "Tile": _tile,
    "TopK": _top_k,
}
