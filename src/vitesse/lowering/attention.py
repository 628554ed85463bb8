"""Attention (opset 23) → softmax(scale · q kᵀ + mask) v (Vaswani et al. 2017, arXiv:1706.03762) in basic operators.

q, k, v come as (batch, heads, tokens, width), or as (batch, tokens, heads · width) with the heads as attributes.
Fewer heads of k and v than of q serve neighbouring heads of q (grouped queries).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.rules import Fusion, LeftAlone
from vitesse.lowering.building import (
    OperatorRule,
    float_type,
    given,
    integer,
    integers,
    length_of,
    number,
    numbers,
    rank_of,
    required,
)

_HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Plan:
    """widths: of a head of k and v, where they are needed to repeat them for grouped queries."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    causal: NDArray[np.float64] | None
    dtype: ir.DataType
    scale: float
    split: bool
    heads: int | None
    groups: int
    kv_heads: int | None
    widths: tuple[int | None, int | None]


class _Attention(OperatorRule):
    operator = "Attention"

    def prepare(self, node: ir.Node) -> _Plan:
        q, k, v, mask = (*(required(node, place) for place in range(3)), given(node, 3))
        dtype = float_type(q)
        if any(value is not None for value in node.inputs[4:]):
            raise LeftAlone("it has a cache of keys and values, or lengths of them")
        if number(node, "softcap", 0.0):
            raise LeftAlone("it caps the scores (softcap)")
        if integer(node, "softmax_precision", int(dtype)) != int(dtype):
            raise LeftAlone("its softmax has another precision than its inputs")
        split = rank_of(q) == 3
        heads, kv_heads = _heads(node, q, k, split)
        width, v_width = _width(q, heads, split), _width(v, kv_heads, split)
        if width is None:
            raise LeftAlone("the width of a head is not static")
        groups = 1 if heads == kv_heads else (heads or 0) // (kv_heads or 1)
        if groups != 1 and v_width is None:
            raise LeftAlone("the width of a head of the values is not static")
        scale = number(node, "scale", 1 / math.sqrt(width))
        causal = _causal(node, q, k) if integer(node, "is_causal", 0) else None
        _check_mask(mask, k)
        return _Plan(
            q, k, v, mask, causal, dtype, scale, split, heads, groups, kv_heads, (width, v_width)
        )  # fmt: skip

    def build(self, op: Any, plan: _Plan) -> Any:
        q = _by_heads(op, plan.q, plan.heads, plan.split)
        k = _repeated(op, _by_heads(op, plan.k, plan.kv_heads, plan.split), plan, plan.widths[0])
        v = _repeated(op, _by_heads(op, plan.v, plan.kv_heads, plan.split), plan, plan.widths[1])
        # The queries are scaled, not the scores: in float16 the product would overflow first.
        scaled = op.Mul(q, numbers(op, plan.scale, plan.dtype))
        scores = op.MatMul(scaled, op.Transpose(k, perm=[0, 1, 3, 2]))
        if plan.mask is not None:
            scores = op.Add(scores, _additive(op, plan.mask, plan.dtype))
        if plan.causal is not None:
            scores = op.Add(scores, numbers(op, plan.causal, plan.dtype))
        y = op.MatMul(op.Softmax(scores, axis=-1), v)
        return op.Reshape(op.Transpose(y, perm=_HEADS_FIRST), integers(op, [0, 0, -1])) if plan.split else y


def _heads(node: ir.Node, q: ir.Value, k: ir.Value, split: bool) -> tuple[int | None, int | None]:
    """Heads of q and of k and v; both None where they are not static, and then taken to be equal."""
    if split:
        return node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    heads, kv_heads = length_of(q, 1), length_of(k, 1)
    if heads is None or kv_heads is None:
        raise LeftAlone("the number of heads is not static")
    return heads, kv_heads


def _width(value: ir.Value, heads: int | None, split: bool) -> int | None:
    whole = length_of(value, -1)
    return whole if whole is None or not split else whole // (heads or 1)


def _causal(node: ir.Node, q: ir.Value, k: ir.Value) -> NDArray[np.float64]:
    """What keeps query i from keys beyond i, to be added to the scores."""
    queries, keys = length_of(q, -2), length_of(k, -2)
    if queries is None or keys is None:
        raise LeftAlone("it is causal, and the number of tokens is not static")
    return np.where(np.tril(np.ones((queries, keys), bool)), 0.0, -np.inf)


def _check_mask(mask: ir.Value | None, k: ir.Value) -> None:
    """A mask may be shorter than the keys and is then padded, which Add cannot do."""
    if mask is None:
        return
    if rank_of(mask) == 0 or mask.dtype is None:
        raise LeftAlone("the shape or type of the mask is not known")
    keys, covered = length_of(k, -2), length_of(mask, -1)
    if covered != 1 and keys is not None and covered is not None and covered < keys:
        raise LeftAlone(f"the mask covers {covered} of {keys} keys")


def _by_heads(op: Any, value: Any, heads: int | None, split: bool) -> Any:
    if not split:
        return value
    assert heads is not None
    return op.Transpose(op.Reshape(value, integers(op, [0, 0, heads, -1])), perm=_HEADS_FIRST)


def _repeated(op: Any, value: Any, plan: _Plan, width: int | None) -> Any:
    """Keys or values once for each head of q: (batch, kv heads, T, width) → (batch, heads, T, width)."""
    if plan.groups == 1:
        return value
    assert plan.heads is not None and width is not None
    once = op.Unsqueeze(value, integers(op, [2]))
    return op.Reshape(op.Concat(*[once] * plan.groups, axis=2), integers(op, [0, plan.heads, -1, width]))


def _additive(op: Any, mask: ir.Value, dtype: ir.DataType) -> Any:
    if mask.dtype != ir.DataType.BOOL:
        return mask
    return op.Where(mask, numbers(op, 0.0, dtype), numbers(op, -np.inf, dtype))


LOWERING = Fusion("attention", (_Attention.rule(),), opset=13)
