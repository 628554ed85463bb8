"""Merging tokens in the graph: bipartite soft matching of Bolya et al., "Token Merging" (2022, arXiv:2210.09461).

The tokens are dealt out in turn into A (the even ones, but not the class token) and B (the odd ones). Every token of A
finds the one of B whose key is most like its own (cosine, keys averaged over the heads); the `rate` best pairs become
one token each, the mean weighted by how many image patches the two stand for. What is left of A keeps its order
in front of B, and the class token stays first.

Of equally similar pairs the one with the lower index is merged: ArgMax and TopK say so in the standard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.lowering.building import integers, numbers

# A key shorter than that is as good as zero; also float16 holds it.
_SHORTEST = 1e-6
_TO_THE_END = 2**31 - 1


class Writer:
    """Writes operators into a graph, one behind the other: `op.Add(a, b)`; attributes by keyword.

    Args:
        graph: the graph.
        behind: the node behind which the first one goes.
        notes: metadata of every node.
    """

    def __init__(self, graph: ir.Graph, behind: ir.Node, notes: Mapping[str, str]) -> None:
        self._graph, self._last, self._notes = graph, behind, dict(notes)

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        return partial(self._write, op_type)

    def _write(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.several(1, op_type, *inputs, **attributes)[0]

    def several(self, outputs: int, op_type: str, *inputs: ir.Value, **attributes: Any) -> Sequence[ir.Value]:
        """Write an operator of several outputs."""
        notes = dict(self._notes)
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, metadata_props=notes)
        self._graph.insert_after(self._last, node)
        self._last = node
        return node.outputs


@dataclass(frozen=True)
class Tokens:
    """Tokens at one place of the network.

    values: (batch, count, width).
    sizes: (batch, count), how many of the first tokens each one stands for; None: one each.
    class_token: the first one stays what it is.
    """

    values: ir.Value
    count: int
    sizes: ir.Value | None = None
    class_token: bool = False

    @property
    def in_a(self) -> NDArray[np.int64]:
        """Places of the tokens of A, which may be merged away."""
        return np.arange(2 * self.class_token, self.count, 2)

    @property
    def most(self) -> int:
        """How many can be merged at once: all of A but one."""
        return max(0, len(self.in_a) - 1)


def merge(op: Writer, tokens: Tokens, keys: ir.Value, heads: int, rate: int) -> Tokens:
    """Write one merge.

    Args:
        op: where to.
        tokens: those after attention was added.
        keys: (batch, count, heads · width of a head), the keys of that attention.
        rate: how many tokens go, 1 to `tokens.most`.

    Returns:
        `rate` tokens fewer, with their sizes.
    """
    left = len(tokens.in_a) - rate
    best, partner = _match(op, tokens, keys, heads)
    _, order = _top(op, best, rate + left)
    merged, rest = op.several(2, "Split", order, integers(op, [rate, left]), axis=1)
    places = op.Constant(value=ir.tensor(tokens.in_a))
    rows, kept = (op.Gather(places, index) for index in (merged, _ascending(op, rest, left)))
    sizes = tokens.sizes
    if sizes is None:
        every = op.Shape(tokens.values, start=0, end=2)
        sizes = op.ConstantOfShape(every, value=_one(tokens.values))
    partners = op.GatherElements(partner, merged, axis=1)
    in_b = op.Constant(value=ir.tensor(np.arange(tokens.count // 2)[:, None]))
    hits = op.Equal(op.Unsqueeze(partners, integers(op, [1])), in_b)
    moved_sizes = op.Unsqueeze(op.GatherElements(sizes, rows, axis=1), integers(op, [1]))
    # (batch, B, rate): the size of a merged token where it goes, else 0.
    shares = op.Mul(op.CastLike(hits, moved_sizes), moved_sizes)
    old_sizes = _odd(op, sizes)
    new_sizes = op.Add(old_sizes, op.ReduceSum(shares, integers(op, [2]), keepdims=0))
    last = integers(op, [2])
    weighted = op.Mul(_odd(op, tokens.values), op.Unsqueeze(old_sizes, last))
    sums = op.Add(weighted, op.MatMul(shares, _rows(op, tokens.values, rows)))
    means = op.Div(sums, op.Unsqueeze(new_sizes, last))
    parts = [_rows(op, tokens.values, kept), means]
    part_sizes = [op.GatherElements(sizes, kept, axis=1), new_sizes]
    if tokens.class_token:
        parts.insert(0, _slice(op, tokens.values, 0, end=1))
        part_sizes.insert(0, _slice(op, sizes, 0, end=1))
    values, all_sizes = op.Concat(*parts, axis=1), op.Concat(*part_sizes, axis=1)
    return Tokens(values, tokens.count - rate, all_sizes, tokens.class_token)


def proportional(op: Writer, sizes: ir.Value, queries: int) -> ir.Value:
    """Write what is added to the logits of attention so that a token of size s counts s times: log s.

    Returns (batch, 1, queries, keys): runtimes want the axis of the queries at its full length.
    """
    logs = op.Unsqueeze(op.Log(sizes), integers(op, [1, 2]))
    return op.Expand(logs, integers(op, [1, 1, queries, 1]))


def weighted_mean(op: Writer, values: ir.Value, sizes: ir.Value, *, start: int, keepdims: bool) -> ir.Value:
    """Write the mean over the patches that (batch, tokens, width) stand for.

    `sizes` are those of all tokens; `values` lack the first `start`.
    """
    weights = _slice(op, sizes, start) if start else sizes
    column = op.Unsqueeze(weights, integers(op, [2]))
    axis = integers(op, [1])
    sums = op.ReduceSum(op.Mul(values, column), axis, keepdims=int(keepdims))
    return op.Div(sums, op.ReduceSum(column, axis, keepdims=int(keepdims)))


def _match(op: Writer, tokens: Tokens, keys: ir.Value, heads: int) -> tuple[ir.Value, ir.Value]:
    """(batch, A): the cosine of the best partner, and which one of B that is."""
    # The sum over the heads has the direction of their mean.
    metric = op.ReduceSum(op.Reshape(keys, integers(op, [0, 0, heads, -1])), integers(op, [2]), keepdims=0)
    dtype = keys.dtype or ir.DataType.FLOAT
    lengths = op.Max(op.ReduceL2(metric, integers(op, [2]), keepdims=1), numbers(op, _SHORTEST, dtype))
    unit = op.Div(metric, lengths)
    even = _slice(op, unit, int(tokens.in_a[0]), step=2)
    cosines = op.MatMul(even, op.Transpose(_odd(op, unit), perm=[0, 2, 1]))
    return op.ReduceMax(cosines, integers(op, [2]), keepdims=0), op.ArgMax(cosines, axis=2, keepdims=0)


def _odd(op: Writer, value: ir.Value) -> ir.Value:
    """The tokens of B."""
    return _slice(op, value, 1, step=2)


def _slice(op: Writer, value: ir.Value, start: int, *, end: int = _TO_THE_END, step: int = 1) -> ir.Value:
    """Tokens start, start + step, … before `end`."""
    return op.Slice(value, *(integers(op, [at]) for at in (start, end, 1, step)))


def _rows(op: Writer, values: ir.Value, index: ir.Value) -> ir.Value:
    """The tokens that `index` (batch, k) names, another choice for each image."""
    return op.GatherND(values, op.Unsqueeze(index, integers(op, [2])), batch_dims=1)


def _top(op: Writer, values: ir.Value, count: int, *, largest: bool = True) -> tuple[ir.Value, ir.Value]:
    found = op.several(2, "TopK", values, integers(op, [count]), axis=1, largest=int(largest), sorted=1)
    return found[0], found[1]


def _ascending(op: Writer, index: ir.Value, count: int) -> ir.Value:
    """Sort indices; as numbers, for not every runtime's TopK takes integers."""
    values, _ = _top(op, op.Cast(index, to=int(ir.DataType.FLOAT)), count, largest=False)
    return op.Cast(values, to=int(ir.DataType.INT64))


def _one(like: ir.Value) -> ir.TensorProtocol:
    return ir.tensor([1.0], dtype=like.dtype or ir.DataType.FLOAT)
