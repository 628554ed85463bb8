"""The end of a residual block and the 1x1 convolution that the next block begins with → one `ConvChain` step.

Apart, the first writes the widest tensor of the network, and the second reads all of it again.
"""

from __future__ import annotations

import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.conv_pairs import is_product
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    attribute,
    constant,
    given,
    is_step,
    needed,
    take_over,
)
from vitesse.backends.torch_cuda.steps import DOMAIN
from vitesse.scopes import inherited

# More are not held by one multiprocessor beside what they are made of, so that nothing is saved.
MOST_FILTERS = 256
# Places of a Conv step's inputs; a ConvPair step has its weight where that has its scale.
_WEIGHT, _BIAS, _RESIDUAL = 1, 3, 4
_OTHER, _PAIR_WEIGHT = 1, 2


def conv_chains(model: ir.Model) -> int:
    """Join `Conv` with a residual, or `ConvPair`, to the only 1x1 `Conv` behind it, all in 16 bits; returns how many.

    Other steps may read what the first makes. What one of the two writes in E4M3 is left apart.
    """
    made = 0
    for step in [node for node in model.graph if is_step(node, "Conv", "ConvPair")]:
        following = _following(step.outputs[0]) if _ends_block(step) else None
        if following is not None:
            _join(model, step, following)
            made += 1
    return made


def _ends_block(step: ir.Node) -> bool:
    if is_step(step, "ConvPair"):
        return _same_type(step, needed(step, _PAIR_WEIGHT))
    first = attribute(step, "residual_first", 1) or not attribute(step, "activation", "")
    return bool(first) and given(step, _RESIDUAL) is not None and _is_flat(step)


def _following(value: ir.Value) -> ir.Node | None:
    """The only product that reads a value and has the same pixels, where it is narrow enough."""
    found = [
        use.node for use in value.uses() if use.idx == 0 and is_step(use.node, "Conv") and _is_flat(use.node)
    ]
    if len(found) != 1 or given(found[0], _RESIDUAL) is not None:
        return None
    weight = constant(needed(found[0], _WEIGHT))
    return found[0] if weight is not None and len(weight) <= MOST_FILTERS else None


def _is_flat(step: ir.Node) -> bool:
    """Whether a Conv step is a product in 16 bits, without a stride, that writes what it reads."""
    return (
        is_product(step)
        and attribute(step, "strides", (1, 1)) == (1, 1)
        and _same_type(step, needed(step, _WEIGHT))
    )


def _same_type(step: ir.Node, weight: ir.Value) -> bool:
    return step.outputs[0].dtype == weight.dtype


def _join(model: ir.Model, step: ir.Node, following: ir.Node) -> None:
    """Put the chain where its first step stands: all that the second reads besides is constant."""
    pair = is_step(step, "ConvPair")
    inputs = [
        needed(step, 0),
        needed(step, _PAIR_WEIGHT if pair else _WEIGHT),
        given(step, _BIAS),
        needed(following, _WEIGHT),
        given(following, _BIAS),
        None if pair else needed(step, _RESIDUAL),
        *([needed(step, _OTHER)] if pair else []),
    ]
    keywords = {
        "strides": attribute(step, "strides", (1, 1)),
        "activation": attribute(step, "activation", ""),
        "next_activation": attribute(following, "activation", ""),
        "out_dtype": FLOATS[step.outputs[0].dtype],
    }
    made = ir.node(
        "ConvChain",
        inputs,
        keywords,
        domain=DOMAIN,
        num_outputs=2,
        name=step.name,
        metadata_props=inherited(step.name or "", step.metadata_props),
    )
    model.graph.insert_before(step, made)
    for old, new in zip((step.outputs[0], following.outputs[0]), made.outputs, strict=True):
        take_over(old, new)
    model.graph.remove([following, step], safe=True)
