"""The first convolution of a backbone and the MaxPool behind it → one `ConvPool` step.

What the convolution makes is the largest tensor of the network, and a quarter of it is left behind the pooling.
"""

from __future__ import annotations

import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.conv import IMAGE_CHANNELS
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    attribute,
    constant,
    given,
    is_op,
    is_step,
    needed,
    put_step,
    sole_reader,
)

# Places of a Conv step's inputs.
_WEIGHT, _SCALE, _BIAS, _RESIDUAL = 1, 2, 3, 4
_PLAIN_CONV = {"group": 1, "out_scale": 0.0}
_PLAIN_POOL = {"ceil_mode": 0, "auto_pad": "NOTSET", "dilations": (1, 1)}


def conv_pools(model: ir.Model) -> int:
    """Join every `Conv` of an image to the MaxPool that alone reads it, all in 16 bits; returns how many."""
    made = 0
    for step in [node for node in model.graph if is_step(node, "Conv")]:
        pool = sole_reader(step.outputs[0])
        if pool is not None and _reads_image(step) and _pools_plane(pool):
            _join(model, step, pool)
            made += 1
    return made


def _reads_image(step: ir.Node) -> bool:
    weight = constant(needed(step, _WEIGHT))
    return (
        weight is not None
        and weight.shape[1] <= IMAGE_CHANNELS
        and given(step, _SCALE) is None
        and given(step, _RESIDUAL) is None
        and all(attribute(step, name, usual) == usual for name, usual in _PLAIN_CONV.items())
        and step.outputs[0].dtype == needed(step, _WEIGHT).dtype
        and step.outputs[0].dtype != ir.DataType.FLOAT
    )


def _pools_plane(pool: ir.Node) -> bool:
    """Whether a node is a MaxPool over two axes."""
    return (
        is_op(pool, "MaxPool")
        and len(attribute(pool, "kernel_shape", ())) == 2
        and all(attribute(pool, name, usual) == usual for name, usual in _PLAIN_POOL.items())
    )


def _join(model: ir.Model, step: ir.Node, pool: ir.Node) -> None:
    inputs = [needed(step, 0), needed(step, _WEIGHT), given(step, _BIAS)]
    keywords = {
        **{name: attribute(step, name, (1, 1)) for name in ("strides", "dilations")},
        "pads": attribute(step, "pads", (0, 0, 0, 0)),
        "activation": attribute(step, "activation", ""),
        "out_dtype": FLOATS[step.outputs[0].dtype],
        "window": attribute(pool, "kernel_shape", ()),
        "window_strides": attribute(pool, "strides", (1, 1)),
        "window_pads": attribute(pool, "pads", (0, 0, 0, 0)),
    }
    put_step(model, "ConvPool", inputs, keywords, [step, pool])
