"""`Attention` on four axes between a head split and a head merge → on (batch, tokens, heads · width).

The operator splits and merges the heads itself, so the reshapes and transposes around it go away: of separate
projections, of one packed projection, and of PyTorch's sequence-first (tokens, batch, width) layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from vitesse.fusion.attention_layout import (
    LAYOUT_OPERATORS,
    Axes,
    Axis,
    View,
    flat,
    length,
    size,
    view_of,
    wide,
)
from vitesse.fusion.rules import constant

_OPERANDS = ("query", "key", "value")


class _Unsupported(Exception):
    """Why the heads cannot be left to the operator."""


@dataclass(frozen=True)
class _Split:
    """How an operand's heads come from the last axis of `view.source`."""

    view: View
    batch: Axis
    heads: Axis
    tokens: Axis
    width: Axis

    @property
    def sequence_first(self) -> bool:
        """Whether the source is (tokens, batch, …) in memory; with one batch entry both orders are the same."""
        return flat(self.view.source_axes[:-1]) == self.tokens + self.batch and bool(self.batch)

    @property
    def pick(self) -> tuple[int, int] | None:
        """(which part, of how many) of a packed projection, None for a projection of its own."""
        for factor, index in self.view.picks.items():
            return index, factor.size or 0
        return None


def _split_of(operand: ir.Value, name: str) -> _Split:
    view = view_of(operand)
    if view is None or len(view.axes) != 4 or len(view.source_axes) < 2:
        raise _Unsupported(f"the heads of the {name} are not split by Reshape and Transpose")
    lead, tokens, width = (*view.axes[0], *view.axes[1]), wide(view.axes[2]), wide(view.axes[3])
    last = wide(view.source_axes[-1])
    picked = tuple(view.picks)
    heads = tuple(factor for factor in wide(lead) if factor in last)
    batch = tuple(factor for factor in wide(lead) if factor not in last)
    if wide(lead) != batch + heads or last != picked + heads + width or len(picked) > 1 or not width:
        raise _Unsupported(f"the heads of the {name} are not split off the last axis of a projection")
    if size(heads) is None or size(width) is None:
        raise _Unsupported(f"the number of heads of the {name} is not a constant")
    if flat(view.source_axes[:-1]) not in (batch + tokens, tokens + batch):
        raise _Unsupported(f"the {name} mixes batch and tokens in an order that needs its own transpose")
    return _Split(view, batch, heads, tokens, width)


def _check_alike(splits: Sequence[_Split]) -> None:
    heads = [size(split.heads) for split in splits]
    if len(set(heads)) > 1:
        raise _Unsupported(f"query, key and value have {heads} heads")
    batches = {size(split.batch) for split in splits} - {None}
    if len(batches) > 1:
        raise _Unsupported(
            f"query, key and value differ in batch: {sorted(b for b in batches if b is not None)}"
        )


def _sizes(*groups: Axis) -> list[int]:
    """Lengths for a Reshape, -1 for the one that is not a number."""
    lengths = [size(group) for group in groups]
    if lengths.count(None) > 1:
        raise _Unsupported("batch and tokens are both dynamic where they are merged into one axis")
    return [-1 if length is None else length for length in lengths]


def _prepared(op: Any, split: _Split) -> ir.Value:
    """The source as (batch, tokens, packed width)."""
    source, axes = split.view.source, [wide(axis) for axis in split.view.source_axes]
    last = axes[-1]
    if split.sequence_first:
        if axes != [split.tokens, split.batch, last]:
            source = op.Reshape(source, op.Constant(value_ints=_sizes(split.tokens, split.batch, last)))
        source = op.Transpose(source, perm=[1, 0, 2])
    elif axes != [split.batch, split.tokens, last]:
        source = op.Reshape(source, op.Constant(value_ints=_sizes(split.batch, split.tokens, last)))
    return source


def _operands(op: Any, splits: Sequence[_Split]) -> list[ir.Value]:
    """Query, key and value as (batch, tokens, heads · width); parts of one packed projection by one Split."""
    prepared: dict[ir.Value, ir.Value] = {}
    for split in splits:
        if split.view.source not in prepared:
            prepared[split.view.source] = _prepared(op, split)
    parts: dict[ir.Value, Any] = {}
    operands = []
    for split in splits:
        whole = prepared[split.view.source]
        if split.pick is None:
            operands.append(whole)
            continue
        index, count = split.pick
        if split.view.source not in parts:
            parts[split.view.source] = op.Split(whole, num_outputs=count, axis=-1, _outputs=count)
        operands.append(parts[split.view.source][index])
    return operands


class SplitAndMergedHeads(RewriteRuleClassBase):
    """Rooted at the Reshape that merges the heads; what led there is traced, not matched, as it has many spellings."""

    def __init__(self) -> None:
        # The traced nodes are not part of the match: whoever is left without users is removed afterwards.
        super().__init__("heads", remove_nodes=False)

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        """Any Reshape."""
        return op.Reshape(x, shape, _outputs=["merged"])

    def check(self, context: Any, x: ir.Value, merged: ir.Value, **_: Any) -> MatchResult:
        """Say why an `Attention` whose result reaches this Reshape keeps its four axes."""
        node = _attention_before(x)
        if node is None or "q_num_heads" in node.attributes:
            return MatchResult().fail("")
        try:
            self._plan(node, merged)
        except _Unsupported as reason:
            return MatchResult().fail(str(reason))
        return MatchResult()

    def _plan(self, node: ir.Node, merged: ir.Value) -> None:
        inputs = list(node.inputs)
        if any(value is not None for value in inputs[4:]):
            raise _Unsupported("the attention has a key and value cache")
        self._node = node
        self._splits = [_split_of(v, n) for v, n in zip(inputs[:3], _OPERANDS, strict=True) if v is not None]
        _check_alike(self._splits)
        query, key, value = self._splits
        self._scale = query.view.scale * key.view.scale
        if value.view.scale != 1.0:
            raise _Unsupported("the value is scaled between its projection and the attention")
        self._mask = inputs[3] if len(inputs) > 3 else None
        own_batch = wide(query.view.axes[0]) == query.batch
        self._mask_shape = None if own_batch or self._mask is None else _mask_shape(self._mask, query, key)
        made: Axes = (query.batch, query.heads, query.tokens, value.width)
        roots = {node.outputs[0]: made if own_batch else ((), query.batch + query.heads, made[2], made[3])}
        view = view_of(merged, roots)
        if view is None or view.source is not node.outputs[0]:
            raise _Unsupported("how the heads are merged cannot be followed")
        tokens, width = wide(view.source_axes[2]), wide(view.source_axes[3])
        lead = flat(view.source_axes[:2])
        batch, heads = lead[: len(query.batch)], lead[len(query.batch) :]
        orders = {batch + tokens + heads + width: False, tokens + batch + heads + width: True}
        if flat(view.axes) not in orders:
            raise _Unsupported("the heads are not merged back next to their width")
        self._to_sequence_first = orders[flat(view.axes)] and bool(batch)
        self._is_plain = [wide(axis) for axis in view.axes] == [batch, tokens, heads + width]
        rows = (tokens, batch) if self._to_sequence_first else (batch, tokens)
        if not self._is_plain and not _copies_only(merged, view, (*rows, heads + width)):
            raise _Unsupported("the Reshape that merges the heads copies a length that is merged with others")

    def rewrite(self, op: Any, shape: ir.Value, **_: Any) -> Any:
        """Emit the three-axis form, and what is left of the reshapes."""
        heads = size(self._splits[0].heads)
        attributes = dict(self._node.attributes)
        if self._scale != 1.0:
            width = size(self._splits[0].width) or 1
            own = attributes["scale"].as_float() if "scale" in attributes else width**-0.5
            attributes["scale"] = ir.AttrFloat32("scale", own * self._scale)
        operands = _operands(op, self._splits)
        if self._mask is not None:
            shape_of_mask = self._mask_shape
            whole = (
                self._mask
                if not shape_of_mask
                else op.Reshape(self._mask, op.Constant(value_ints=shape_of_mask))
            )
            operands.append(whole)
        output = op.Attention(*operands, **attributes, q_num_heads=heads, kv_num_heads=heads)
        query, _key, value = self._splits
        output.type = self._node.outputs[0].type
        output.shape = ir.Shape(
            [length(query.batch), length(query.tokens), length(query.heads + value.width)]
        )
        if self._to_sequence_first:
            return op.Reshape(op.Transpose(output, perm=[1, 0, 2]), shape)
        return output if self._is_plain else op.Reshape(output, shape)


def _copies_only(merged: ir.Value, view: View, axes: Axes) -> bool:
    """Whether each 0 in the Reshape's shape, which copies a length of its input, finds the same length in `axes`."""
    node = merged.producer()
    shape = constant(node.inputs[1]) if node is not None else None
    copied = [] if shape is None else [at for at, length in enumerate(shape.flat) if length == 0]
    return all(at < len(axes) and wide(view.axes[at]) == axes[at] for at in copied)


def _mask_shape(mask: ir.Value, query: _Split, key: _Split) -> list[int] | None:
    """Shape that takes a mask over batch · heads apart; None when it is the same for all of them."""
    lengths = None if mask.shape is None else list(mask.shape)[:-2]
    if lengths is not None and all(length == 1 for length in lengths):
        return None
    heads, queries, keys = size(query.heads), size(query.tokens), size(key.tokens)
    if lengths is None or heads is None or queries is None or keys is None:
        raise _Unsupported(
            "the mask may differ along an axis that merges batch and heads, and its shape is dynamic"
        )
    return [-1, heads, queries, keys]


def _attention_before(value: ir.Value) -> ir.Node | None:
    """The `Attention` of which `value` is the only use, through layout operators; None when there is none."""
    while not value.is_graph_output() and len(value.uses()) == 1:
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Attention":
            return node if len(node.outputs) == 1 else None
        if node.op_type not in LAYOUT_OPERATORS or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def rules() -> tuple[RewriteRule, ...]:
    """The one rule."""
    return (SplitAndMergedHeads.rule(),)
