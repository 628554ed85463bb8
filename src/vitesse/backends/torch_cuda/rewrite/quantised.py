"""FP8 as the file has it, pairs of QuantizeLinear and DequantizeLinear around layers → steps on E4M3 numbers.

A MatMul of two dequantised tensors is the product of the stored numbers times both scales:

    Q(x)·sx · Q(w)·sw = (Q(x) · Q(w)) · (sx·sw)

so that `Linear` and `Conv` read E4M3 and multiply their sums by one float32 per output channel. That is the first
phase, `quantised`, before all other rewrites. The second, `quantise_outputs`, comes after them: what is left of a pair
is the QuantizeLinear of x, and it moves into the step that makes x. Both round at the same places as the file does,
except that a value between two FP16 roundings is not rounded to FP16 first.

INT8 pairs stay as they are, and are computed as the graph says: INT8 products are slower than FP16 on these GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.conv import convolves_plane, put_conv
from vitesse.backends.torch_cuda.rewrite.layer import Array, float_of, shape_of, wide
from vitesse.backends.torch_cuda.rewrite.layer import number as number_of
from vitesse.backends.torch_cuda.rewrite.nodes import (
    FLOATS,
    attribute,
    bypass,
    constant,
    given,
    initializer,
    is_op,
    is_step,
    needed,
    nodes_of,
    put_step,
    sole_reader,
)
from vitesse.backends.torch_cuda.rewrite.reasons import LeftAlone, Notes

_E4M3 = ir.DataType.FLOAT8E4M3FN
_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)


_LAYOUT = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class _Plan:
    """A layer as a step reads it: x in E4M3, the weight as the step has it, and float32 [1] or [channels] for both."""

    x: ir.Value
    weight: ir.Value | Array
    scale: Array
    bias: ir.Value | Array | None


def quantised(model: ir.Model) -> int:
    """Rewrite MatMul, Gemm and Conv of dequantised E4M3 tensors into `Linear` and `Conv` steps, in place.

    The steps have neither bias (but that of a Gemm or Conv) nor activation nor residual yet; `epilogue.absorb` gives
    them those. The QuantizeLinear that makes their first input stays; equal ones of one tensor become one. What is left
    alone, and why, tells `left_alone`.

    Returns:
        How many layers became steps.
    """
    _merge_equal(model)
    made = 0
    for node in _layers(model):
        try:
            plan = _plan(node)
        except LeftAlone:
            continue
        name = f"{node.outputs[0].name}_e4m3"
        weight, bias = (
            _held(model, f"{name}_{what}", one)
            for what, one in (("weight", plan.weight), ("bias", plan.bias))
        )
        scale = initializer(model, f"{name}_scale", plan.scale)
        tensors = [plan.x, weight, scale, bias]
        if is_op(node, "Conv"):
            put_conv(model, node, tensors)
        else:
            put_step(model, "Linear", tensors, {"out_dtype": float_of(node.outputs[0])}, [node])
        made += 1
    return made


def left_alone(model: ir.Model) -> tuple[str, ...]:
    """Why layers that read dequantised tensors are no steps on E4M3 numbers: one line a reason, with how often."""
    notes = Notes()
    for node in _layers(model):
        try:
            _plan(node)
        except LeftAlone as reason:
            notes[str(reason)] += 1
    return notes.lines()


def quantise_outputs(model: ir.Model) -> int:
    """Let the steps quantise what they make where a QuantizeLinear to E4M3 reads it, in place; returns how often.

    `Linear`, `Conv`, `ConvPair` and `Attention` then write E4M3 instead of 16 bits, so that nothing else may read their
    result; `Norm` writes it beside, as its third output. A reshape or transposition in between is done in E4M3. Every
    other QuantizeLinear is left to `quantise`: behind a pooling, an Add that no step took in, or what 16-bit steps
    read, too.
    """
    made = 0
    for node in nodes_of(model, "QuantizeLinear"):
        scale = _output_scale(node)
        if scale is None:
            continue
        between = _between(node)
        source = needed(between[0] if between else node, 0)
        step = source.producer()
        if (
            is_step(step, "Linear", "Conv", "ConvPair", "Attention")
            and step is not None
            and sole_reader(source) is not None
        ):
            step.attributes["out_scale"] = ir.AttrFloat32("out_scale", scale)
            source.type = ir.TensorType(_E4M3)
        elif is_step(step, "Norm") and step is not None and source is step.outputs[0] and not _third(step):
            source = _with_third(step, scale, between[0] if between else node)
        else:
            continue
        _without_quantiser(model, node, source, between)
        made += 1
    return made


def quantise(model: ir.Model) -> int:
    """Put a `Quantise` step in the place of every QuantizeLinear to E4M3 that is left, in place; returns how many.

    It takes in the Add before it where nobody else reads the sum, and one of the two has the shape of a suffix.
    """
    made = 0
    for node in nodes_of(model, "QuantizeLinear"):
        scale, x = _output_scale(node), needed(node, 0)
        if scale is None or x.dtype not in FLOATS:
            continue
        add = x.producer()
        pair = _summands(add) if add is not None and sole_reader(x) is node else None
        inputs, replaced = ([x], [node]) if pair is None or add is None else (pair, [add, node])
        put_step(model, "Quantise", inputs, {"out_scale": scale}, replaced, named=node)
        made += 1
    return made


def _summands(add: ir.Node) -> list[ir.Value] | None:
    """What an Add adds: first what has the shape of the sum, then what has that of a suffix of it."""
    if not is_op(add, "Add"):
        return None
    shape = shape_of(add.outputs[0])
    for place in (0, 1):
        x, other = needed(add, place), needed(add, 1 - place)
        trimmed = shape_of(other)
        while trimmed and trimmed[0] == 1:
            trimmed = trimmed[1:]
        if shape_of(x) == shape and trimmed == shape[len(shape) - len(trimmed) :]:
            return [x, other]
    return None


def _held(model: ir.Model, name: str, one: ir.Value | Array | None) -> ir.Value | None:
    """A tensor of the graph: `one` itself, or a new constant."""
    return initializer(model, name, one) if isinstance(one, np.ndarray) else one


def _layers(model: ir.Model) -> list[ir.Node]:
    """The layers of which an input is dequantised."""
    return [
        node
        for node in nodes_of(model, "MatMul", "Gemm", "Conv")
        if any(_dequantiser(value) is not None for value in node.inputs[:2])
    ]


def _dequantiser(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a tensor, also behind a Cast and, for a weight, a Transpose."""
    makers = _makers(value)
    last = next((node for node in makers if not is_op(node, "Cast", "Transpose")), None)
    return last if is_op(last, "DequantizeLinear") else None


def _makers(value: ir.Value | None) -> Iterator[ir.Node]:
    """The node that makes a tensor, the one that makes its first input, and so on."""
    while value is not None and (node := value.producer()) is not None:
        yield node
        value = given(node, 0)


def _turned(value: ir.Value) -> bool:
    """Whether an odd number of transpositions lies between a tensor and its DequantizeLinear."""
    between = takewhile(lambda node: is_op(node, "Cast", "Transpose"), _makers(value))
    return sum(is_op(node, "Transpose") for node in between) % 2 == 1


def _plan(node: ir.Node) -> _Plan:
    """How a layer reads E4M3; raises LeftAlone."""
    x, weight = (_dequantiser(value) for value in node.inputs[:2])
    if x is None or weight is None:
        raise LeftAlone("only one input of a layer is quantised")
    for one in (x, weight):
        _check_numbers(one)
    if _turned(needed(node, 0)):
        raise LeftAlone("a quantised tensor is transposed before its layer")
    step = constant(needed(x, 1))
    if step is None or step.size != 1:
        raise LeftAlone("a layer's first input has scales by channel, not one for the tensor")
    float_of(node.outputs[0])
    return _conv_plan(node, x, weight, step) if is_op(node, "Conv") else _linear_plan(node, x, weight, step)


def _check_numbers(node: ir.Node) -> None:
    """Raise LeftAlone where a DequantizeLinear is not of E4M3 numbers around 0, with scales that are constant."""
    kind, zero = needed(node, 0).dtype, given(node, 2)
    if kind in _EIGHT_BITS:
        raise LeftAlone(
            "a layer between INT8 pairs is computed as the graph says, without a kernel of its own: INT8 products were"
            " measured slower than FP16 on an H100; give this engine the FP16 or the FP8 graph"
        )
    if kind != _E4M3:
        raise LeftAlone(f"a quantised tensor is {kind}, not E4M3")
    zeros = None if zero is None else constant(zero)
    if zero is not None and (zeros is None or bool(wide(zeros).any())):
        raise LeftAlone("a quantised tensor has a zero point other than 0")
    if constant(needed(node, 1)) is None or attribute(node, "block_size", 0):
        raise LeftAlone("a quantised tensor has scales by block, or computed ones")


def _linear_plan(node: ir.Node, x: ir.Node, weight: ir.Node, step: Array) -> _Plan:
    numbers = constant(needed(weight, 0))
    if numbers is None or numbers.ndim != 2:
        raise LeftAlone("two computed tensors are multiplied in E4M3")
    gemm = is_op(node, "Gemm")
    transposed = _turned(needed(node, 1)) != bool(gemm and attribute(node, "transB", 0))
    scale = _by_channel(weight, 0 if transposed else 1, 2) * wide(step).item()
    bias = None
    if gemm:
        if attribute(node, "transA", 0):
            raise LeftAlone("a quantised tensor is transposed before its layer")
        scale = scale * attribute(node, "alpha", 1.0)
        bias = _gemm_bias(node)
    stored = np.ascontiguousarray(numbers.T) if transposed else needed(weight, 0)
    return _Plan(needed(x, 0), stored, scale.astype(np.float32), bias)


def _gemm_bias(node: ir.Node) -> Array | None:
    value = given(node, 2)
    if value is None:
        return None
    bias, width = constant(value), shape_of(node.outputs[0])[1]
    if bias is None or bias.size not in (1, width) or (bias.ndim == 2 and bias.shape[0] != 1):
        raise LeftAlone("the third input of a Gemm is not a constant by channel")
    scaled = wide(bias).reshape(-1) * attribute(node, "beta", 1.0)
    return np.broadcast_to(scaled, (width,)).astype(bias.dtype)


def _conv_plan(node: ir.Node, x: ir.Node, weight: ir.Node, step: Array) -> _Plan:
    if constant(needed(weight, 0)) is None or _turned(needed(node, 1)):
        raise LeftAlone("the weights of a convolution are computed")
    if not convolves_plane(node):
        raise LeftAlone("a convolution has not two spatial axes, or a bias that is computed")
    scale = _by_channel(weight, 0, 4) * wide(step).item()
    return _Plan(needed(x, 0), needed(weight, 0), scale.astype(np.float32), given(node, 2))


def _by_channel(weight: ir.Node, axis: int, rank: int) -> Array:
    """The scales of a weight as float64 [1] or [channels]; raises LeftAlone where they are not by output channel."""
    scale = constant(needed(weight, 1))
    assert scale is not None  # `_check_numbers` asked
    if scale.size > 1 and attribute(weight, "axis", 1) % rank != axis:
        raise LeftAlone("a weight has scales by input channel")
    return wide(scale).reshape(-1)


def _merge_equal(model: ir.Model) -> None:
    """Make one of the QuantizeLinear that round one tensor with one scale: some exporters write one a layer."""
    seen: dict[tuple[ir.Value, float], ir.Node] = {}
    for node in nodes_of(model, "QuantizeLinear"):
        scale = _output_scale(node)
        if scale is None:
            continue
        first = seen.setdefault((needed(node, 0), scale), node)
        if first is not node:
            bypass(model, node, first.outputs[0])


def _output_scale(node: ir.Node) -> float | None:
    """The scale of a QuantizeLinear that does what `steps.quantised` does, else None."""
    zero, scale = given(node, 2), number_of(given(node, 1))
    zeros = constant(zero)
    if node.outputs[0].dtype != _E4M3 or (zero is not None and (zeros is None or bool(wide(zeros).any()))):
        return None
    saturates = attribute(node, "saturate", 1) == 1 and not attribute(node, "block_size", 0)
    return scale if saturates and not node.outputs[0].is_graph_output() else None


def _between(node: ir.Node) -> list[ir.Node]:
    """What only moves or widens numbers between a step and its QuantizeLinear, in order, and is read only once."""
    found: list[ir.Node] = []
    value = needed(node, 0)
    while sole_reader(value) is not None and (maker := value.producer()) is not None:
        widens = (
            is_op(maker, "Cast") and value.dtype == ir.DataType.FLOAT and needed(maker, 0).dtype in FLOATS
        )
        if not widens and not is_op(maker, *_LAYOUT):
            break
        found.insert(0, maker)
        value = needed(maker, 0)
    return found


def _third(step: ir.Node) -> bool:
    return len(step.outputs) > 2 and bool(step.outputs[2].name)


def _with_third(step: ir.Node, scale: float, reader: ir.Node) -> ir.Value:
    """Give a `Norm` its E4M3 output, which `reader` reads then; the first one goes where nobody reads it any more."""
    first, before = step.outputs[0], len(step.outputs)
    step.resize_outputs(3)
    for unused in step.outputs[before:2]:
        unused.name = ""
    third = step.outputs[2]
    third.name, third.shape, third.type = f"{first.name}_e4m3", first.shape, ir.TensorType(_E4M3)
    step.attributes["out_scale"] = ir.AttrFloat32("out_scale", scale)
    reader.replace_input_with(0, third)
    if not first.uses() and not first.is_graph_output():
        first.name = ""
    return third


def _without_quantiser(model: ir.Model, node: ir.Node, source: ir.Value, between: list[ir.Node]) -> None:
    """Remove a QuantizeLinear whose work is done in `source`, and let what is in between move E4M3 numbers."""
    value = source
    for one in between:
        if is_op(one, "Cast"):
            bypass(model, one, value)
        else:
            value = one.outputs[0]
            value.type = ir.TensorType(_E4M3)
    bypass(model, node, value)
