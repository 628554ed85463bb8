"""MatMul or Gemm with a constant weight, and what can be done while its sums are still in registers → `Linear`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.activations import activation_behind
from vitesse.backends.torch_cuda.rewrite.layer import Array, Layer, float_of, shape_of, wide, without_batch
from vitesse.backends.torch_cuda.rewrite.nodes import (
    attribute,
    constant,
    given,
    initializer,
    is_op,
    is_step,
    needed,
    nodes_of,
    other_input,
    sole_reader,
)
from vitesse.backends.torch_cuda.rewrite.reasons import LeftAlone, Notes

# A factor that is moved into 16-bit weights may cost them as much as rounding them did, but not more: 2**-10.
_ROUNDING = 2.0**-10


def linear(model: ir.Model, notes: Notes | None = None) -> int:
    """Make `Linear` of every MatMul and Gemm with a constant weight, in place, and let it absorb what follows.

    Absorbed are, as they come: a bias, a factor per channel (LayerScale), an activation, one residual before or after
    the activation, a Cast to float32, and Reshapes that flatten the rows only for this layer. Steps `Linear` that are
    there already absorb, too.

    Returns:
        How many MatMul and Gemm became a step.
    """
    notes = Notes() if notes is None else notes
    made = 0
    for node in nodes_of(model, "MatMul", "Gemm"):
        try:
            made += _lowered(model, node)
        except LeftAlone as reason:
            notes[f"linear: {reason}"] += 1
    # Of two layers that are summed the later one takes the sum, so that the other one's result is there by then.
    for step in reversed([node for node in model.graph if is_step(node, "Linear")]):
        _grow(model, step, notes)
    return made


def _lowered(model: ir.Model, node: ir.Node) -> bool:
    x, weight = needed(node, 0), needed(node, 1)
    array = constant(weight)
    if array is None:
        return False  # a product of two computed tensors, as in attention
    if array.ndim != 2:
        raise LeftAlone(f"a constant is multiplied that has {array.ndim} axes, not 2")
    if x.dtype != weight.dtype or len(shape_of(x)) < 2:
        raise LeftAlone(f"a {x.dtype} of {len(shape_of(x))} axes is multiplied by a {weight.dtype}")
    layer = Layer(x, weight, out_dtype=float_of(node.outputs[0]))
    (layer if is_op(node, "MatMul") else _of_gemm(model, node, layer)).put(model, [node])
    return True


def _of_gemm(model: ir.Model, node: ir.Node, layer: Layer) -> Layer:
    """Fold transB, alpha and beta into the constants; raises LeftAlone where they are not."""
    if attribute(node, "transA", 0):
        raise LeftAlone("Gemm transposes its first input")
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    weight, summand = needed(node, 1), given(node, 2)
    array, bias = constant(weight), constant(summand)
    assert array is not None
    if attribute(node, "transB", 0) or alpha != 1.0:
        turned = array.T if attribute(node, "transB", 0) else array
        layer = replace(
            layer, weight=initializer(model, f"{weight.name}_kn", _scaled(turned, np.float64(alpha)))
        )
    if summand is None or beta == 0.0:
        return layer
    if bias is None:
        if beta != 1.0 or shape_of(summand) != shape_of(node.outputs[0]):
            raise LeftAlone("Gemm adds a computed tensor with a factor or to every row")
        return replace(layer, residual=summand)
    scaled = _scaled(bias, np.float64(beta))
    vector = _by_channel(scaled, layer.width)
    if vector is not None:
        return replace(layer, bias=initializer(model, f"{summand.name}_n", vector))
    if scaled.shape != shape_of(node.outputs[0]):
        raise LeftAlone("Gemm adds one number to a row")
    return replace(layer, residual=initializer(model, f"{summand.name}_mn", scaled))


def _grow(model: ir.Model, step: ir.Node, notes: Notes) -> None:
    """Absorb until nothing is left that fits; what nearly did is noted."""
    while True:
        layer, output = Layer.of(step), step.outputs[0]
        if layer.out_scale > 0:
            return  # what follows reads the result rounded
        behind = activation_behind(output)
        if behind is not None and not layer.activation:
            first = int(layer.residual is not None)
            layer = replace(layer, activation=behind[0], residual_first=first)
            step = layer.put(model, [step, *behind[1]])
            continue
        reader = sole_reader(output)
        rule = _READERS.get(reader.op_type) if reader is not None and is_op(reader, reader.op_type) else None
        try:
            grown = None if rule is None or reader is None else rule(model, layer, reader, output)
        except LeftAlone as reason:
            notes[f"linear: {reason}"] += 1
            return
        if grown is None or reader is None:
            return
        step = grown.put(model, [step, reader])


def _added(model: ir.Model, layer: Layer, add: ir.Node, output: ir.Value) -> Layer | None:
    """A bias or a residual, whichever the other summand is."""
    other, shape = other_input(add, output), shape_of(output)
    if other is None or shape_of(add.outputs[0]) != shape:
        raise LeftAlone("a sum repeats the result along an axis")
    array = constant(other)
    vector = None if array is None else _by_channel(array, layer.width)
    if (
        vector is not None
        and not layer.activation
        and (layer.bias is None or constant(layer.bias) is not None)
    ):
        before = constant(layer.bias)
        total = vector if before is None else (wide(before) + wide(vector)).astype(vector.dtype)
        same = before is None and array is not None and array.shape == vector.shape
        return replace(
            layer, bias=other if same else initializer(model, f"{add.outputs[0].name}_bias", total)
        )
    if layer.residual is not None:
        raise LeftAlone("a second residual")
    if other.dtype != output.dtype:
        raise LeftAlone(f"a residual is {other.dtype} and the layer {output.dtype}")
    if array is not None:
        other = _shared(model, other, array)
    residual = shape_of(other)
    if len(residual) < 2 or residual != shape[len(shape) - len(residual) :]:
        raise LeftAlone("a residual is broadcast in another way than over the batch")
    return replace(layer, residual=other, residual_first=0)


def _shared(model: ir.Model, value: ir.Value, array: Array) -> ir.Value:
    """A constant residual without its batch axis; of two axes at least."""
    shared = without_batch(array)
    if shared.ndim < 2:
        shared = array.reshape(array.shape[-2:]) if array.size == np.prod(array.shape[-2:]) else array[0]
    return value if shared.shape == array.shape else initializer(model, f"{value.name}_shared", shared)


def _multiplied(model: ir.Model, layer: Layer, mul: ir.Node, output: ir.Value) -> Layer | None:
    """LayerScale and 1 / sqrt(d): a factor per channel goes into the constants."""
    array = constant(other_input(mul, output))
    if array is None or shape_of(mul.outputs[0]) != shape_of(output):
        return None
    factor = _by_channel(array, layer.width)
    if factor is None or layer.activation or layer.residual is not None:
        raise LeftAlone("a factor is not one number a channel, or stands behind an activation or a residual")
    bias, weight, scale = constant(layer.bias), constant(layer.weight), constant(layer.scale)
    assert weight is not None
    if bias is not None:
        layer = replace(layer, bias=initializer(model, f"{output.name}_bias", _scaled(bias, wide(factor))))
    if scale is not None:
        wider = (wide(scale) * wide(factor)).astype(np.float32)
        return replace(layer, scale=initializer(model, f"{output.name}_scale", wider))
    return replace(layer, weight=initializer(model, f"{output.name}_weight", _scaled(weight, wide(factor))))


def _cast(model: ir.Model, layer: Layer, cast: ir.Node, output: ir.Value) -> Layer | None:
    """A 16-bit result that is read in float32 need not be rounded in between."""
    wanted = cast.outputs[0].dtype == ir.DataType.FLOAT and output.dtype != ir.DataType.FLOAT
    return replace(layer, out_dtype="float32") if wanted else None


def _reshaped(model: ir.Model, layer: Layer, reshape: ir.Node, output: ir.Value) -> Layer | None:
    """Rows that are flattened for the layer and unflattened behind it need neither."""
    flattened = layer.x.producer()
    if flattened is None or not is_op(flattened, "Reshape") or layer.residual is not None:
        return None
    base, wanted = needed(flattened, 0), shape_of(reshape.outputs[0])
    if shape_of(base) != (*wanted[:-1], shape_of(layer.x)[-1]) or wanted[-1] != layer.width:
        return None
    return replace(layer, x=base)


_READERS: dict[str, Callable[[ir.Model, Layer, ir.Node, ir.Value], Layer | None]] = {
    "Add": _added,
    "Mul": _multiplied,
    "Cast": _cast,
    "Reshape": _reshaped,
}


def _scaled(array: Array, factor: Array | np.float64) -> Array:
    """array · factor in float64, rounded once; raises LeftAlone where the type has not the digits left for it."""
    exact = wide(array) * factor
    with np.errstate(over="ignore"):
        rounded: Array = exact.astype(array.dtype)
    axis = 0 if exact.ndim > 1 else None
    if not np.all(np.abs(wide(rounded) - exact).max(axis) <= _ROUNDING * np.abs(exact).max(axis)):
        raise LeftAlone(f"a factor would leave the weights too few digits in {array.dtype}")
    return rounded


def _by_channel(array: Array, width: int) -> Array | None:
    """A constant that is one number for each channel, or one for all; None for any other shape."""
    if array.size == 1:
        return np.full(width, array.item(), array.dtype)
    return array.reshape(width) if array.size == width and array.shape[-1] == width else None
