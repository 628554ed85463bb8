"""A `Norm` that only one `Linear` reads → `NormLinear`: at batch 1 the norm costs more to launch than to compute."""

from __future__ import annotations

import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import Layer
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    attribute,
    given,
    is_step,
    needed,
    put_step,
    sole_reader,
)

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Places of a Norm step's inputs and outputs.
_RESIDUAL, _SUM, _E4M3 = 3, 1, 2


def norm_linear(model: ir.Model) -> int:
    """Join every `Norm` in 16 bits, without a sum of its own, to the one `Linear` that reads it; returns how many."""
    made = 0
    for step in [node for node in model.graph if is_step(node, "Linear")]:
        layer = Layer.of(step)
        norm = layer.x.producer()
        if norm is None or not is_step(norm, "Norm") or not _joinable(norm, layer, step):
            continue
        inputs = [needed(norm, 0), needed(norm, 1), given(norm, 2), layer.weight, layer.bias, layer.residual]
        keywords = layer.attributes | {"epsilon": float(attribute(norm, "epsilon", 1e-5))}
        put_step(model, "NormLinear", inputs, keywords, [norm, step], named=step)
        made += 1
    return made


def _joinable(norm: ir.Node, layer: Layer, step: ir.Node) -> bool:
    return (
        sole_reader(layer.x) is step
        and given(norm, _RESIDUAL) is None
        and not norm.outputs[_SUM].name
        and not norm.outputs[_E4M3].name
        and layer.x.dtype in _HALVES
        and FLOATS[layer.x.dtype] == FLOATS.get(layer.weight.dtype)
        and layer.scale is None
    )
