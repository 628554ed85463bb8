"""Two 1x1 convolutions that are added, the end of a residual block and its shortcut → one `ConvPair` step.

A shortcut of its own writes as much as the block does, only to be read again at once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import wide
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    attribute,
    constant,
    given,
    initializer,
    is_step,
    needed,
    put_step,
    sole_reader,
)

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Places of a Conv step's inputs.
_WEIGHT, _SCALE, _BIAS, _RESIDUAL = 1, 2, 3, 4


def conv_pairs(model: ir.Model) -> int:
    """Join `Conv` steps in 16 bits whose residual is a 1x1 convolution that nobody else reads; returns how many.

    The adding one has no stride. E4M3 products with scales of their own are left apart.
    """
    made = 0
    for step in [node for node in model.graph if is_step(node, "Conv")]:
        shortcut = _shortcut(step)
        if shortcut is not None:
            _join(model, step, shortcut)
            made += 1
    return made


def _shortcut(step: ir.Node) -> ir.Node | None:
    """The convolution that alone makes a step's residual, where both are 1x1 products of one type."""
    residual = given(step, _RESIDUAL)
    other = None if residual is None else residual.producer()
    if residual is None or other is None or not is_step(other, "Conv") or sole_reader(residual) is not step:
        return None
    bare = not attribute(other, "activation", "") and given(other, _RESIDUAL) is None
    first = attribute(step, "residual_first", 1) or not attribute(step, "activation", "")
    if not (bare and first and is_product(step) and is_product(other)):
        return None
    return other if attribute(step, "strides", (1, 1)) == (1, 1) else None


def is_product(step: ir.Node) -> bool:
    """Whether a `Conv` step is a product of single pixels in 16 bits, at any stride."""
    weight = constant(needed(step, _WEIGHT))
    return (
        weight is not None
        and weight.shape[2:] == (1, 1)
        and needed(step, 0).dtype == needed(step, _WEIGHT).dtype
        and needed(step, 0).dtype in _HALVES
        and given(step, _SCALE) is None
        and not any(attribute(step, "pads", ()))
        and attribute(step, "group", 1) == 1
    )


def _join(model: ir.Model, step: ir.Node, shortcut: ir.Node) -> None:
    made = step.outputs[0]
    weights = [constant(needed(one, _WEIGHT)) for one in (step, shortcut)]
    known = [weight for weight in weights if weight is not None]
    weight = initializer(model, f"{made.name}_weights", np.concatenate(known, 1), needed(step, _WEIGHT).dtype)
    keywords = {
        "strides": attribute(shortcut, "strides", (1, 1)),
        "activation": attribute(step, "activation", ""),
        "out_dtype": attribute(step, "out_dtype", FLOATS[made.dtype]),
    }
    inputs = [needed(step, 0), needed(shortcut, 0), weight, _bias(model, step, shortcut)]
    put_step(model, "ConvPair", inputs, keywords, [shortcut, step], named=step)


def _bias(model: ir.Model, step: ir.Node, shortcut: ir.Node) -> ir.Value | None:
    first, second = given(step, _BIAS), given(shortcut, _BIAS)
    one, other = constant(first), constant(second)
    if one is None or other is None:
        return first or second
    return initializer(model, f"{step.outputs[0].name}_bias", (wide(one) + wide(other)).astype(one.dtype))
