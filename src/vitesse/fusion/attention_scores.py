"""Softmax(scale · Q Kᵀ + mask) V, written out → one `Attention` operator on (batch, heads, tokens, width).

The formula is equation 1 of "Attention Is All You Need" (Vaswani et al., 2017). Where the heads come from, and
where they go, is left as it is; `attention_heads` takes that part.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase, pattern

from vitesse.fusion.opset import opset_of
from vitesse.fusion.rules import scalar

# A score filled with this or less has weight exp(-1e4) = 0 in float32, so filling it and adding to it agree.
_HIDDEN = -1e4


def rank(value: ir.Value) -> int | None:
    """Number of axes, from the shape or else from the Transpose that made the value; None when neither says."""
    if value.shape is not None:
        return int(value.shape.rank())
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and "perm" in node.attributes:
        return len(node.attributes["perm"].as_ints())
    return None


def dim(value: ir.Value, axis: int) -> int | None:
    """Length of an axis, None when it is not a known number."""
    if value.shape is None or not -value.shape.rank() <= axis < value.shape.rank():
        return None
    length = value.shape[axis]
    return length if isinstance(length, int) else None


class WrittenOutAttention(RewriteRuleClassBase):
    """MatMul, Softmax, MatMul with the scale on the scores, on the query, on the key, or on both.

    Scores may be masked by Add (additive mask) or by Where (filled with a large negative constant). Rows of NaN
    replaced by zero after the softmax, as PyTorch's exporter writes them, are what `Attention` does itself.
    """

    def __init__(self, masked: str) -> None:
        super().__init__(f"written out, mask: {masked}")
        self._masked = masked

    def pattern(
        self,
        op: Any,
        query_a: Any,
        query_b: Any,
        key_a: Any,
        key_b: Any,
        scale: Any,
        mask: Any,
        hidden: Any,
        value: Any,
    ) -> Any:
        """The written-out form; query and key, when scaled, are products whose constant side is found later."""
        query = pattern.OrValue(
            [op.Mul(query_a, query_b), op.Div(query_a, query_b), query_a], tag_var="query_by"
        )
        key = pattern.OrValue([op.Mul(key_a, key_b), op.Div(key_a, key_b), key_a], tag_var="key_by")
        raw = op.MatMul(query, key)
        scores = pattern.OrValue(
            [op.Mul(raw, scale), op.Mul(scale, raw), op.Div(raw, scale), raw], tag_var="scores_by"
        )
        masked = {
            "none": lambda: scores,
            "added": lambda: pattern.OrValue([op.Add(scores, mask), op.Add(mask, scores)]),
            "filled": lambda: op.Where(mask, hidden, scores),
            "kept": lambda: op.Where(mask, scores, hidden),
        }[self._masked]()
        weights = op.Softmax(masked, _outputs=["weights"])
        without_nan = op.Where(op.IsNaN(weights), 0.0, weights)
        return op.MatMul(pattern.OrValue([without_nan, weights]), value)

    def check(
        self,
        context: Any,
        query_a: ir.Value,
        key_a: ir.Value,
        value: ir.Value,
        weights: ir.Value,
        mask: ir.Value | None = None,
        hidden: ir.Value | None = None,
        **bound: Any,
    ) -> MatchResult:
        """Say why the match cannot become one `Attention`; remember the scale when it can."""
        result = MatchResult()
        self._query, query_scale = _unscaled(bound["query_by"], query_a, bound.get("query_b"))
        self._key, key_scale = _unscaled(bound["key_by"], key_a, bound.get("key_b"))
        self._rank = rank(self._query or query_a) or rank(value) or 0
        if self._rank not in (3, 4):
            return result.fail(f"the query has rank {self._rank or '(unknown)'}, not 3 or 4")
        if not _is_last_axis(context.model, weights, self._rank):
            return result.fail("the softmax is not over the last axis, the keys")
        factor = scalar(bound.get("scale")) if bound["scores_by"] != 3 else 1.0
        if factor is None:
            return result.fail("the scale of the scores is not one constant number")
        score_scale = 1.0 / factor if bound["scores_by"] == 2 else factor
        self._scale = query_scale * key_scale * score_scale
        if self._scale <= 0:
            return result.fail(f"the scale is {self._scale:g}, not positive")
        different = _different_batch(self._query or query_a, self._key or key_a, value)
        if different:
            return result.fail(different)
        if self._masked in ("filled", "kept"):
            fill = scalar(hidden)
            if fill is None or fill > _HIDDEN:
                return result.fail("the fill of masked scores is not one constant, -1e4 or less")
        if mask is not None and rank(mask) is None:
            return result.fail("the rank of the mask is unknown")
        if mask is not None and (rank(mask) or 0) > self._rank:
            return result.fail(f"the mask has rank {rank(mask)}, the scores have rank {self._rank}")
        return result

    def rewrite(
        self,
        op: Any,
        query_a: ir.Value,
        key_a: ir.Value,
        value: ir.Value,
        mask: ir.Value | None = None,
        **bound: Any,
    ) -> Any:
        """Emit `Attention`; a 3-D product over batch × heads becomes one batch entry with that many heads."""
        query = self._query or _product(op, bound["query_by"], query_a, bound["query_b"])
        key_t = self._key or _product(op, bound["key_by"], key_a, bound["key_b"])
        key = _swapped(op, key_t, self._rank)
        if mask is not None:
            mask = self._mask(op, mask, bound.get("hidden"), query, query_a)
        width = dim(query_a, -1)
        default = width is not None and math.isclose(self._scale, width**-0.5, rel_tol=1e-6)
        attributes = {} if default else {"scale": self._scale}
        if self._rank == 4:
            return op.Attention(query, key, value, *([mask] if mask is not None else []), **attributes)
        first = op.Constant(value_ints=[0])
        query, key, value = (op.Unsqueeze(operand, first) for operand in (query, key, value))
        output = op.Attention(query, key, value, *([mask] if mask is not None else []), **attributes)
        return op.Squeeze(output, first)

    def _mask(self, op: Any, mask: ir.Value, hidden: Any, query: ir.Value, source: ir.Value) -> ir.Value:
        """The mask with its last two axes (queries, keys) in full, as ONNX Runtime does not broadcast them."""
        if self._masked == "filled":
            mask = op.Not(mask)
        queries = dim(source, -2)
        if queries is None or (rank(mask) or 0) < 2 or dim(mask, -2) != queries:
            if queries is None:
                axis = self._rank - 2
                queries_only = op.Shape(query, start=axis, end=axis + 1)
                full = op.Concat(queries_only, op.Constant(value_ints=[1]), axis=0)
            else:
                full = op.Constant(value_ints=[queries, 1])
            known = None if mask.shape is None or mask.shape.rank() < 2 else mask.shape
            mask = op.Expand(mask, full)
            if known is not None:
                mask.shape = ir.Shape([*known[:-2], queries, known[-1]])
        if self._rank == 3 and mask.shape is not None and mask.shape.rank() == 3:
            lengths = list(mask.shape)
            mask = op.Unsqueeze(mask, op.Constant(value_ints=[0]))
            mask.shape = ir.Shape([1, *lengths])
        return mask


def _unscaled(by: int, a: ir.Value, b: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Take a constant factor off a product: (what is scaled, factor), or (None, 1) when neither side is constant."""
    if by == 2 or b is None:
        return a, 1.0
    factor = scalar(b)
    if factor is not None:
        return (a, factor) if by == 0 else (a, 1.0 / factor)
    factor = scalar(a) if by == 0 else None
    return (b, factor) if factor is not None else (None, 1.0)


def _product(op: Any, by: int, a: ir.Value, b: ir.Value) -> Any:
    return op.Mul(a, b) if by == 0 else op.Div(a, b)


def _swapped(op: Any, key_t: ir.Value, key_rank: int) -> ir.Value:
    """Undo the transpose of the last two axes, or compose it with the transpose that made the value."""
    axes = [*range(key_rank - 2), key_rank - 1, key_rank - 2]
    node = key_t.producer()
    if node is not None and node.op_type == "Transpose" and "perm" in node.attributes:
        made = node.attributes["perm"].as_ints()
        composed = [made[axis] for axis in axes]
        source = node.inputs[0]
        assert source is not None
        if composed == sorted(composed):
            return source
        key_t, axes = source, composed
    key: ir.Value = op.Transpose(key_t, perm=axes)
    return key


def _is_last_axis(model: ir.Model, weights: ir.Value, scores_rank: int) -> bool:
    """Before opset 13 Softmax flattened all axes from `axis` (default 1) on into one."""
    node = weights.producer()
    assert node is not None
    default = -1 if opset_of(model) >= 13 else 1
    axis = int(node.attributes["axis"].as_int()) if "axis" in node.attributes else default
    return axis in (-1, scores_rank - 1)


def _different_batch(query: ir.Value, key: ir.Value, value: ir.Value) -> str:
    """MatMul broadcasts the axes before the last two; `Attention` does not."""
    for axis in range((rank(query) or 2) - 2):
        lengths = {dim(operand, axis) for operand in (query, key, value)} - {None}
        if len(lengths) > 1:
            return (
                f"query, key and value differ in axis {axis}: {sorted(n for n in lengths if n is not None)}"
            )
    return ""


def rules() -> tuple[RewriteRule, ...]:
    """One rule per kind of mask, so that each stays a small pattern."""
    return tuple(WrittenOutAttention.rule(masked) for masked in ("none", "added", "filled", "kept"))
