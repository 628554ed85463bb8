"""Attention (opset 23), or the products and the Softmax that it stands for → `Attention` on packed tensors.

Heads are consecutive channels of a tensor [B, S, width], so that neither splitting a packed projection nor bringing
the heads to the front needs a kernel: both are an offset into what the layer wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import float_of, shape_of
from vitesse.backends.torch_cuda.rewrite.nodes import (
    AttributeValue,
    attribute,
    constant,
    given,
    initializer,
    needed,
    nodes_of,
    put_step,
)
from vitesse.backends.torch_cuda.rewrite.packing import (
    HEADS_FIRST,
    PACKED,
    pack_and_unpack,
    packed,
    packing_behind,
)
from vitesse.backends.torch_cuda.rewrite.reasons import LeftAlone, Notes
from vitesse.backends.torch_cuda.rewrite.scores import of_softmax


@dataclass(frozen=True)
class Found:
    """One attention in the graph.

    Args:
        q, k, v: [B, S, heads · size], or with the axes that `forms` says (see `packing`).
        heads, head_size, value_size, scale: as in `steps.attention`.
        mask: additive or bool, or None.
        nodes: what the step does the work of, first to last; the last one makes [B, Sq, heads · value_size] or, where
            q is by heads, [B, heads, Sq, value_size].
    """

    q: ir.Value
    k: ir.Value
    v: ir.Value
    forms: tuple[str, str, str]
    heads: int
    head_size: int
    value_size: int
    scale: float
    mask: ir.Value | None
    nodes: Sequence[ir.Node]


def attention(model: ir.Model, notes: Notes | None = None) -> int:
    """Make `Attention` steps of what computes attention, in place; returns how many.

    Taken are Attention of opset 23 on three or four axes, and MatMul, scale, mask, Softmax, MatMul on four. Queries,
    keys and values are read where a layer wrote them, whatever Reshape, Transpose, Slice, Split and Gather lie between.
    """
    notes = Notes() if notes is None else notes
    made = 0
    for node in nodes_of(model, "Attention", "Softmax"):
        try:
            found = _of_operator(node) if node.op_type == "Attention" else _of_scores(node)
            if found is not None:
                _put(model, found)
                made += 1
        except LeftAlone as reason:
            notes[f"attention: {reason}"] += 1
    return made


def _of_operator(node: ir.Node) -> Found:
    q, k, v = needed(node, 0), needed(node, 1), needed(node, 2)
    by_heads = len(shape_of(q)) == 4
    heads = shape_of(q)[1] if by_heads else int(attribute(node, "q_num_heads", 0))
    keys = shape_of(k)[1] if by_heads else int(attribute(node, "kv_num_heads", 0))
    if heads < 1 or keys != heads:
        raise LeftAlone(f"{heads} heads of queries share {keys} of keys")
    if attribute(node, "is_causal", 0) or attribute(node, "softcap", 0.0):
        raise LeftAlone("it is causal, or its scores are capped")
    if any(given(node, place) is not None for place in range(4, len(node.inputs))):
        raise LeftAlone("it has keys from before, or a number of keys for each image")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise LeftAlone("its scores or its keys are read, too")
    parts = 1 if by_heads else heads
    size, value_size = shape_of(q)[-1] // parts, shape_of(v)[-1] // parts
    scale = float(attribute(node, "scale", size**-0.5))
    form = HEADS_FIRST if by_heads else PACKED
    return Found(q, k, v, (form, form, form), heads, size, value_size, scale, given(node, 3), [node])


def _of_scores(softmax: ir.Node) -> Found | None:
    scores = of_softmax(softmax)
    if scores is None:
        return None
    heads = {shape_of(value)[1] for value in (scores.q, scores.k, scores.v)}
    if len(heads) != 1:
        raise LeftAlone(f"{shape_of(scores.q)[1]} heads of queries share {shape_of(scores.k)[1]} of keys")
    return Found(
        q=scores.q,
        k=scores.k,
        v=scores.v,
        forms=scores.forms,
        heads=heads.pop(),
        head_size=shape_of(scores.q)[-1],
        value_size=shape_of(scores.v)[-1],
        scale=scores.scale,
        mask=scores.mask,
        nodes=scores.nodes,
    )


def _put(model: ir.Model, found: Found) -> None:
    last = found.nodes[-1]
    out_dtype = float_of(last.outputs[0])
    if any(value.dtype != last.outputs[0].dtype for value in (found.q, found.k, found.v)):
        raise LeftAlone("queries, keys, values and the result have different types")
    mask = _useful(model, found)
    sizes = found.head_size, found.head_size, found.value_size
    parts = [
        packed(model, value, form, found.heads, size, found.nodes[0])
        for value, form, size in zip((found.q, found.k, found.v), found.forms, sizes, strict=True)
    ]
    keywords: dict[str, AttributeValue] = {
        "heads": found.heads,
        "head_size": found.head_size,
        "value_size": found.value_size,
        "scale": float(found.scale),
        **{f"{name}_offset": offset for name, (_, offset) in zip("qkv", parts, strict=True)},
        "out_dtype": out_dtype,
        "out_scale": 0.0,
    }
    inputs = [*(_for_all_images(model, value) for value, _ in parts), mask]
    if found.forms[0] != PACKED:
        # The step writes the heads side by side: what does that behind it goes, or is undone for the readers.
        behind = packing_behind(last.outputs[0]) or pack_and_unpack(model, last)
        found = replace(found, nodes=[*found.nodes, *behind])
    put_step(model, "Attention", inputs, keywords, found.nodes)


def _useful(model: ir.Model, found: Found) -> ir.Value | None:
    """The mask where it hides anything; raises LeftAlone for one that the step cannot broadcast."""
    mask = found.mask
    if mask is None:
        return None
    queries, keys = shape_of(found.q)[-2], shape_of(found.v)[-2]
    shape = (1,) * (4 - len(shape_of(mask))) + shape_of(mask)
    full = (shape_of(found.q)[0], found.heads, queries, keys)
    if len(shape) > 4 or any(length not in (1, may) for length, may in zip(shape, full, strict=True)):
        raise LeftAlone(f"a mask of {shape_of(mask)} does not fit scores of {full}")
    if mask.dtype != ir.DataType.BOOL:
        float_of(mask)
    array = constant(mask)
    if array is None:
        return mask
    hides = not array.all() if mask.dtype == ir.DataType.BOOL else bool(np.any(array))
    return mask if hides else None


def _for_all_images(model: ir.Model, value: ir.Value) -> ir.Value:
    """A constant that is the same for every image of the batch, once."""
    array = constant(value)
    if array is None or array.shape[0] == 1 or not (array == array[:1]).all():
        return value
    return initializer(model, f"{value.name}_shared", array[:1])
