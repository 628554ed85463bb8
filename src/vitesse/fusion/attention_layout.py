"""Following a tensor back through reshapes, transposes, picks and constant scales to where its numbers were made.

An axis is a tuple of factors: after Reshape of (batch, tokens, 384) to (batch, tokens, 3, 4, 32), the last axis of
the source is made of the factors 3, 4 and 32. Layout operators only regroup and reorder factors, so two tensors with
the same factors in the same order hold the same numbers in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from vitesse.fusion.rules import constant, scalar

# Operators that move or regroup numbers and do nothing else.
LAYOUT_OPERATORS = frozenset(("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))


@dataclass(frozen=True, eq=False)
class Factor:
    """A piece of an axis; two factors are the same only if they are the same object. `size` None: not a number."""

    size: int | None
    label: str = ""


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def wide(factors: Sequence[Factor]) -> Axis:
    """Without the factors of size 1, which change nothing in the order of the numbers."""
    return tuple(factor for factor in factors if factor.size != 1)


def flat(axes: Sequence[Axis]) -> Axis:
    """All factors in order, without those of size 1."""
    return wide([factor for axis in axes for factor in axis])


def size(factors: Sequence[Factor]) -> int | None:
    """Product of the sizes, None when one of them is not a number."""
    sizes = [factor.size for factor in factors]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def length(factors: Sequence[Factor]) -> int | str | None:
    """The dimension these factors make: a number, the name of a single symbolic one, or None."""
    known = size(factors)
    if known is not None:
        return known
    return factors[0].label or None if len(factors) == 1 else None


@dataclass(frozen=True)
class View:
    """`axes` of a tensor in terms of the factors of `source`.

    `picks` are the source's factors held at one index; `scale` is what the numbers were multiplied by on the way.
    """

    source: ir.Value
    source_axes: Axes
    axes: Axes
    picks: Mapping[Factor, int]
    scale: float = 1.0

    def split(self, old: Factor, new: Axis) -> View:
        """Return the view with `old` replaced by the factors it falls into."""

        def refine(axes: Axes) -> Axes:
            return tuple(tuple(n for f in axis for n in (new if f is old else (f,))) for axis in axes)

        return replace(self, source_axes=refine(self.source_axes), axes=refine(self.axes))


def view_of(value: ir.Value, roots: Mapping[ir.Value, Axes] | None = None) -> View | None:
    """Follow `value` back to its source, or to one of `roots`, whose axes are given; None when no shape is known."""
    if roots and value in roots:
        return View(value, roots[value], roots[value], {})
    node = value.producer()
    step = _STEPS.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None
    if node is not None and step is not None and node.inputs[0] is not None:
        before = view_of(node.inputs[0], roots)
        after = None if before is None else step(before, node, value)
        if after is not None:
            return after
    if value.shape is None:
        return None
    axes = tuple((_factor(dimension),) for dimension in value.shape)
    return View(value, axes, axes, {})


def _factor(dimension: int | ir.SymbolicDim) -> Factor:
    return Factor(dimension) if isinstance(dimension, int) else Factor(None, str(dimension.value or ""))


def _transpose(view: View, node: ir.Node, _: ir.Value) -> View | None:
    if "perm" not in node.attributes:
        return replace(view, axes=view.axes[::-1])
    return replace(view, axes=tuple(view.axes[axis] for axis in node.attributes["perm"].as_ints()))


def _listed_axes(node: ir.Node) -> list[int] | None:
    """Axes of Squeeze and Unsqueeze: an attribute before opset 13, an input since."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    listed = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if listed is None else [int(axis) for axis in listed.flat]


def _squeeze(view: View, node: ir.Node, _: ir.Value) -> View | None:
    listed = _listed_axes(node)
    if listed is None:
        return None
    gone = {axis % len(view.axes) for axis in listed}
    if any(wide(view.axes[axis]) for axis in gone):
        return None
    return replace(view, axes=tuple(axis for at, axis in enumerate(view.axes) if at not in gone))


def _unsqueeze(view: View, node: ir.Node, _: ir.Value) -> View | None:
    listed = _listed_axes(node)
    if listed is None:
        return None
    rank = len(view.axes) + len(listed)
    added = {axis % rank for axis in listed}
    old = iter(view.axes)
    return replace(view, axes=tuple(() if at in added else next(old) for at in range(rank)))


def _picked(view: View, axis: int, index: int, keep: bool) -> View | None:
    """Hold one axis, which must be a single factor of known size, at one index."""
    factors = wide(view.axes[axis])
    if len(factors) != 1 or factors[0].size is None:
        return None
    held: Axes = ((),) if keep else ()
    axes = (*view.axes[:axis], *held, *view.axes[axis + 1 :])
    return replace(view, axes=axes, picks={**view.picks, factors[0]: index % factors[0].size})


def _gather(view: View, node: ir.Node, _: ir.Value) -> View | None:
    index = constant(node.inputs[1])
    axis = int(node.attributes["axis"].as_int()) if "axis" in node.attributes else 0
    if index is None or index.ndim > 1 or index.size != 1:
        return None
    return _picked(view, axis % len(view.axes), int(index.item()), keep=index.ndim == 1)


def _slice(view: View, node: ir.Node, _: ir.Value) -> View | None:
    bounds = [constant(bound) for bound in node.inputs[1:]]
    if len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, axis, *steps = (int(bound.item()) for bound in bounds if bound is not None)
    axis %= len(view.axes)
    whole = size(view.axes[axis])
    if whole is None or steps not in ([], [1]):
        return None
    first, last = (min(bound if bound >= 0 else bound + whole, whole) for bound in (start, end))
    return _picked(view, axis, first, keep=True) if last - first == 1 and whole > 1 else None


def _split(view: View, node: ir.Node, value: ir.Value) -> View | None:
    axis = int(node.attributes["axis"].as_int()) if "axis" in node.attributes else 0
    axis %= len(view.axes)
    if size(view.axes[axis]) != len(node.outputs):
        return None
    return _picked(view, axis, int(value.index() or 0), keep=True)


def _reshape(view: View, node: ir.Node, value: ir.Value) -> View | None:
    targets = _targets(view, node, value)
    if targets is None:
        return None
    return _Regrouping(view, targets).result()


def _targets(view: View, node: ir.Node, value: ir.Value) -> list[int | str | None] | None:
    """Wanted lengths: a number, the label of a symbolic dimension, or None for whatever is left."""
    listed = constant(node.inputs[1])
    if listed is None:
        if value.shape is None:
            return None
        return [d if isinstance(d, int) else d.value for d in value.shape]
    copies = "allowzero" not in node.attributes or not node.attributes["allowzero"].as_int()
    targets: list[int | str | None] = []
    for at, wanted in enumerate(int(n) for n in listed.flat):
        if wanted == 0 and copies:
            targets.append(length(wide(view.axes[at])))
        else:
            targets.append(None if wanted < 0 else wanted)
    return targets


class _Regrouping:
    """Deal the factors out to the wanted lengths, from the left and from the right towards the one left open."""

    def __init__(self, view: View, targets: Sequence[int | str | None]) -> None:
        self.view = view
        self.targets = targets
        self.left = [factor for axis in view.axes for factor in axis]

    def result(self) -> View | None:
        """The regrouped view, or None when the lengths do not follow from the factors."""
        heads: list[Axis] = []
        tails: list[Axis] = []
        wanted = list(self.targets)
        while wanted and (axis := self._take(wanted[0], at=0)) is not None:
            heads.append(axis)
            wanted.pop(0)
        while len(wanted) > 1 and (axis := self._take(wanted[-1], at=-1)) is not None:
            tails.insert(0, axis)
            wanted.pop()
        if len(wanted) > 1 or (wanted and isinstance(wanted[0], int)):
            return None
        if not wanted and wide(self.left):
            return None
        middle = [tuple(self.left)] if wanted else []
        return replace(self.view, axes=(*heads, *middle, *tails))

    def _take(self, wanted: int | str | None, at: int) -> Axis | None:
        """Factors from the left (at 0) or right (at -1) end whose product is `wanted`; None when there are none."""
        if wanted is None:
            return None
        if isinstance(wanted, str):
            if not wanted or not self.left or self.left[at].label != wanted:
                return None
            return (self.left.pop(at),)
        taken: list[Factor] = []
        while wanted > 1:
            factor = self._next(wanted, at)
            if factor is None or factor.size is None:
                return None
            taken.insert(0 if at else len(taken), factor)
            wanted //= factor.size
        if not taken and self.left and self.left[at].size == 1:
            taken.append(self.left.pop(at))
        return tuple(taken)

    def _next(self, wanted: int, at: int) -> Factor | None:
        """Pop a factor that divides `wanted`, splitting a larger one."""
        if not self.left:
            return None
        factor = self.left[at]
        if factor.size is not None and wanted % factor.size == 0:
            return self.left.pop(at)
        if factor.size is not None and factor.size % wanted:
            return None
        rest = Factor(None if factor.size is None else factor.size // wanted)
        part = Factor(wanted)
        pair = (part, rest) if at == 0 else (rest, part)
        self.view = self.view.split(factor, pair)
        self.left[at] = rest
        return part


def _scaled(view: View, node: ir.Node, _: ir.Value) -> View | None:
    factor = scalar(node.inputs[1])
    if not factor:
        return None
    return replace(view, scale=view.scale * (factor if node.op_type == "Mul" else 1.0 / factor))


def _same(view: View, _node: ir.Node, _value: ir.Value) -> View | None:
    return view


_STEPS: dict[str, Callable[[View, ir.Node, ir.Value], View | None]] = {
    "Div": _scaled,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _scaled,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
