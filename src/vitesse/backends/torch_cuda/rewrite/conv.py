"""Convolution, with what follows it in a residual network → one `Conv` step.

A convolution of size 1 stays one: where its kernel is a matrix product, the kernel decides. Reshapes and transpositions
behind a convolution stay, too, because in channels_last memory [B, C, H, W] → [B, H·W, C] moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.torch_cuda.rewrite.activations import activation_behind
from vitesse.backends.torch_cuda.rewrite.layer import Array, float_of, shape_of, wide
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    AttributeValue,
    attribute,
    constant,
    given,
    initializer,
    is_op,
    is_step,
    needed,
    nodes_of,
    other_input,
    put_step,
    sole_reader,
)

# More are no image, and no kernel reads them in another type than its weight's without a pass of its own.
IMAGE_CHANNELS = 4
# Places of a step's inputs.
_WEIGHT, _SCALE, _BIAS, _RESIDUAL = 1, 2, 3, 4


def conv(model: ir.Model) -> int:
    """Rewrite every Conv over two axes with constant weights, in place; returns how many.

    Into them, and into the `Conv` steps that `quantised` made, goes what follows and nobody else reads: a
    BatchNormalization, a bias, the activation, and the Add of a residual before or after it. Of two convolutions that
    are added the one without a stride adds. The Cast of an image is left out. A Conv over one or three axes, or with
    weights that are computed, is left alone.
    """
    made = 0
    for node in nodes_of(model, "Conv"):
        if (
            convolves_plane(node)
            and constant(needed(node, 1)) is not None
            and needed(node, 0).dtype in FLOATS
        ):
            put_conv(model, node, [needed(node, 0), needed(node, 1), None, given(node, 2)])
            made += 1
    for step in [node for node in model.graph if is_step(node, "Conv")]:
        _absorb(model, step)
    for step in [node for node in model.graph if is_step(node, "Conv")]:
        _read_image(step)
    return made


def convolves_plane(node: ir.Node) -> bool:
    """Whether a Conv has two spatial axes and a bias that is constant or absent."""
    bias = given(node, 2)
    return len(shape_of(needed(node, 1))) == 4 and (bias is None or constant(bias) is not None)


def put_conv(model: ir.Model, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """Put a `Conv` step with these inputs, and the geometry of the Conv `node`, in place of that."""
    attributes: dict[str, AttributeValue] = {
        "strides": attribute(node, "strides", (1, 1)),
        "pads": padding(node),
        "dilations": attribute(node, "dilations", (1, 1)),
        "group": attribute(node, "group", 1),
        "residual_first": 1,
        "out_dtype": float_of(node.outputs[0]),
    }
    return put_step(model, "Conv", inputs, attributes, [node])


def padding(node: ir.Node) -> tuple[int, ...]:
    """Top, left, bottom and right padding of a Conv over two axes, `auto_pad` resolved for its static input.

    SAME gives ⌈input / stride⌉ outputs; what cannot be halved goes to the end (UPPER) or to the beginning (LOWER).
    Source: the ONNX operator Conv.
    """
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return (0, 0, 0, 0)
    if mode == "NOTSET":
        pads: tuple[int, ...] = attribute(node, "pads", (0, 0, 0, 0))
        return pads
    sides = []
    kernel, strides = shape_of(needed(node, 1))[2:], attribute(node, "strides", (1, 1))
    image, dilations = shape_of(needed(node, 0))[2:], attribute(node, "dilations", (1, 1))
    for length, size, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
        outputs = -(-length // stride)
        total = max((outputs - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        less, more = total // 2, total - total // 2
        sides.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return (sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def _read_image(step: ir.Node) -> None:
    """Let the first convolution read the image as it is fed, in float32: the step rounds it to the weight's type."""
    cast = needed(step, 0).producer()
    if cast is None or not is_op(cast, "Cast") or given(step, _SCALE) is not None:
        return
    image, weight = needed(cast, 0), needed(step, _WEIGHT)
    fed = (
        image.is_graph_input() and image.dtype == ir.DataType.FLOAT and weight.dtype == cast.outputs[0].dtype
    )
    if fed and weight.dtype in FLOATS and shape_of(image)[1] <= IMAGE_CHANNELS:
        step.replace_input_with(0, image)


def _absorb(model: ir.Model, step: ir.Node) -> None:
    while not attribute(step, "out_scale", 0.0):
        grown = (
            _normalised(model, step)
            or _with_bias(model, step)
            or _activated(model, step)
            or _added(model, step)
        )
        if grown is None:
            return
        step = grown


def _normalised(model: ir.Model, step: ir.Node) -> ir.Node | None:
    """Take a BatchNormalization into the weight (of E4M3 numbers: the scale) and the bias.

    y = γ·(x − μ)/√(σ² + ε) + β (Ioffe and Szegedy 2015, arXiv:1502.03167), in float64, rounded once.
    """
    norm = sole_reader(step.outputs[0])
    if norm is None or not is_op(norm, "BatchNormalization") or not _bare(step):
        return None
    arrays = [constant(needed(norm, place)) for place in range(1, 5)]
    known = [wide(array) for array in arrays if array is not None]
    if len(known) < len(arrays) or attribute(norm, "training_mode", 0) or len(norm.outputs) > 1:
        return None
    gamma, beta, mean, variance = known
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    before = _numbers(step, _BIAS)
    bias = beta - mean * factor if before is None else (wide(before) - mean) * factor + beta
    weight, scale = _numbers(step, _WEIGHT), _numbers(step, _SCALE)
    assert weight is not None  # a step's weight is constant
    name, kind = norm.outputs[0].name, _numpy_type(step)
    changed = {_BIAS: initializer(model, f"{name}_bias", bias.astype(kind))}
    if scale is None:
        scaled: NDArray[np.float64] = wide(weight) * factor[:, None, None, None]
        changed[_WEIGHT] = initializer(model, f"{name}_weight", scaled.astype(kind))
    else:
        changed[_SCALE] = initializer(model, f"{name}_scale", (wide(scale) * factor).astype(np.float32))
    return _grown(model, step, [norm], changed)


def _with_bias(model: ir.Model, step: ir.Node) -> ir.Node | None:
    add, other = _sum_behind(step)
    values, shape = constant(other), shape_of(step.outputs[0])
    if add is None or values is None or not _bare(step) or values.ndim > len(shape):
        return None
    aligned = (1,) * (len(shape) - values.ndim) + values.shape
    if any(length not in (1, allowed) for length, allowed in zip(aligned, (1, shape[1], 1, 1), strict=True)):
        return None
    before = _numbers(step, _BIAS)
    total = np.zeros(shape[1]) if before is None else wide(before)
    total = (total + wide(values).reshape(-1)).astype(_numpy_type(step))
    return _grown(model, step, [add], {_BIAS: initializer(model, f"{add.outputs[0].name}_bias", total)})


def _activated(model: ir.Model, step: ir.Node) -> ir.Node | None:
    found = activation_behind(step.outputs[0])
    if found is None or attribute(step, "activation", ""):
        return None
    name, nodes = found
    return _grown(model, step, nodes, {}, {"activation": name})


def _added(model: ir.Model, step: ir.Node) -> ir.Node | None:
    add, other = _sum_behind(step)
    if add is None or other is None or given(step, _RESIDUAL) is not None:
        return None
    made = step.outputs[0]
    if other.dtype != made.dtype or shape_of(other) != shape_of(made) or _better_in(other, step, add):
        return None
    order = {"residual_first": 0} if attribute(step, "activation", "") else {}
    return _grown(model, step, [add], {_RESIDUAL: other}, order)


def _better_in(other: ir.Value, step: ir.Node, add: ir.Node) -> bool:
    """Whether the other summand is a convolution, too, and the one that should add: a strided shortcut should not.

    A 1x1 convolution without a stride is a matrix product, and all its kernels add a residual.
    """
    rival = other.producer()
    if rival is None or not is_step(rival, "Conv") or sole_reader(other) is not add:
        return False
    return _bare(rival) and max(attribute(step, "strides", (1, 1))) > 1 == max(
        attribute(rival, "strides", (1, 1))
    )


def _sum_behind(step: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add that alone reads what a step makes, and its other summand."""
    add = sole_reader(step.outputs[0])
    return (add, other_input(add, step.outputs[0])) if add is not None and is_op(add, "Add") else (None, None)


def _bare(step: ir.Node) -> bool:
    """Whether nothing but a bias follows the sums of a step yet."""
    return not attribute(step, "activation", "") and given(step, _RESIDUAL) is None


def _numbers(step: ir.Node, place: int) -> Array | None:
    return constant(given(step, place))


def _numpy_type(step: ir.Node) -> np.dtype[np.generic]:
    dtype = step.outputs[0].dtype
    assert dtype is not None  # `put_conv` asked
    return dtype.numpy()


def _grown(
    model: ir.Model,
    step: ir.Node,
    taken: Sequence[ir.Node],
    inputs: Mapping[int, ir.Value],
    attributes: Mapping[str, AttributeValue] | None = None,
) -> ir.Node:
    tensors = [inputs.get(place, given(step, place)) for place in range(_RESIDUAL + 1)]
    kept = {name: one.value for name, one in step.attributes.items()}
    return put_step(model, "Conv", tensors, {**kept, **(attributes or {})}, [step, *taken])
