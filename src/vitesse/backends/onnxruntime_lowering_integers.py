"""Q/DQ graphs → the forms that ONNX Runtime's CPU kernels compute in integers.

Left as they are, its optimiser turns MatMul and Add into Gemm, whose kernel wants the bias as 32-bit integers, and so
computes such a layer in floating point, slower than without Q/DQ; it leaves a convolution in floating point when a
ReLU stands before a symmetric QuantizeLinear; its kernels multiply uint8 with int8 fast and int8 with int8 slowly; and
it moves FP8 into operators that cannot take it. Measured in docs/quantisation.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.rules import constant
from vitesse.scopes import inherited

_LINEAR = ("MatMul", "Gemm")
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_LARGEST = 2.0**31 - 1
_BIAS_INPUT = 2
_FP8 = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})


def lower_quantised(model: ir.Model) -> dict[str, int]:
    """Apply all of them in place, on a graph with inferred shapes; return how often each applied, also 0."""
    return {
        "fp8_by_casts": fp8_by_casts(model),
        "convolutions_on_integers": convolutions_on_integers(model),
        "biases_for_integers": biases_for_integers(model),
        "activations_unsigned": activations_unsigned(model),
    }


def biases_for_integers(model: ir.Model) -> int:
    """Write the biases of quantised linear layers so that no float Gemm is made of them, in place; return how many.

    Behind a MatMul on three axes a bias gets three axes, too, which keeps the Add apart. On matrices it becomes int32
    with scale = activation scale · weight scale, which moves a result by at most half of that.
    """
    done = 0
    for node in list(model.graph):
        scale = _product_scale(node) if node.op_type in _LINEAR else None
        place = _bias_place(node)
        values = None if scale is None or place is None else constant(place[0].inputs[place[1]])
        if scale is None or place is None or values is None or values.shape != scale.shape:
            continue
        adder, at = place
        shape = node.outputs[0].shape
        if node.op_type == "MatMul" and shape is not None and shape.rank() > 2:
            axes = (1,) * (shape.rank() - 1)
            adder.replace_input_with(at, _stored(model, f"{node.name}_bias_axes", values.reshape(*axes, -1)))
        else:
            stored = np.rint(values / scale)
            if np.abs(stored).max(initial=0) > _LARGEST:
                continue
            adder.replace_input_with(at, _integer_bias(model, node, adder, stored.astype(np.int32), scale))
        done += 1
    return done


def _integer_bias(
    model: ir.Model, node: ir.Node, adder: ir.Node, stored: NDArray[np.int32], scale: NDArray[np.float32]
) -> ir.Value:
    inputs = [
        _stored(model, f"{node.name}_bias_quantized", stored),
        _stored(model, f"{node.name}_bias_scale", scale),
        _stored(model, f"{node.name}_bias_zero_point", np.zeros(scale.shape, np.int32)),
    ]
    return _before(adder, node, "DequantizeLinear", inputs, ir.AttrInt64("axis", 0))


def activations_unsigned(model: ir.Model) -> int:
    """Store activations as uint8 with a zero point 128 higher instead of int8, in place: the same numbers.

    Returns how many tensors.
    """
    done = 0
    for node in [node for node in model.graph if node.op_type == "QuantizeLinear"]:
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        readers = [use.node for use in node.outputs[0].uses()]
        if (
            zero is None
            or zero.dtype != np.int8
            or node.outputs[0].is_graph_output()
            or any(reader.op_type != "DequantizeLinear" for reader in readers)
        ):
            continue
        unsigned = _stored(model, f"{node.name}_zero_point", (zero.astype(np.int16) + 128).astype(np.uint8))
        for one in (node, *readers):
            one.replace_input_with(2, unsigned)
        node.outputs[0].dtype = ir.DataType.UINT8
        done += 1
    return done


def convolutions_on_integers(model: ir.Model) -> int:
    """Round what a quantised convolution makes before its ReLU too, where only a symmetric QuantizeLinear reads that.

    In place and exact: with zero point 0, rounding and cutting off at 0 may change places. Returns how many.
    """
    done = 0
    for relu in [node for node in model.graph if node.op_type == "Relu"]:
        made = relu.inputs[0]
        convolution = None if made is None else made.producer()
        reader = _only_reader(relu.outputs[0])
        if (
            made is None
            or convolution is None
            or convolution.op_type != "Conv"
            or _product_scale(convolution) is None
            or _only_reader(made) is not relu
            or reader is None
            or not _is_symmetric(reader)
        ):
            continue
        rounded = _before(relu, reader, "QuantizeLinear", [made, *reader.inputs[1:]])
        relu.replace_input_with(0, _before(relu, reader, "DequantizeLinear", [rounded, *reader.inputs[1:]]))
        done += 1
    return done


def fp8_by_casts(model: ir.Model) -> int:
    """Write QuantizeLinear and DequantizeLinear to and from FP8 as division, casts and multiplication, in place.

    The numbers stay the same; constants become the float32 numbers they stand for. Returns how many operators.
    """
    found = [node for node in model.graph if node.op_type in _QUANTISERS and _is_fp8(node)]
    for node in found:
        value, scale = node.inputs[:2]
        values, steps = constant(value), constant(scale)
        if node.op_type == "QuantizeLinear":
            kind = int(ir.DataType.FLOAT8E4M3FN if node.inputs[2] is None else node.inputs[2].dtype or 0)
            divided = _before(node, node, "Div", [value, scale])
            new = _before(node, node, "Cast", [divided], ir.AttrInt64("to", kind))
        elif values is not None and steps is not None:
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            others = [at for at in range(values.ndim) if at != axis % values.ndim]
            aligned = np.expand_dims(steps, others) if steps.ndim else steps
            new = _stored(model, f"{node.name}_floats", values.astype(np.float32) * aligned)
        else:
            cast = _before(node, node, "Cast", [value], ir.AttrInt64("to", int(ir.DataType.FLOAT)))
            new = _before(node, node, "Mul", [cast, scale])
        new.name = new.name or f"{node.outputs[0].name}_cast"
        ir.convenience.replace_all_uses_with(node.outputs[0], new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    return len(found)


def _product_scale(node: ir.Node) -> NDArray[np.float32] | None:
    """Return activation scale · weight scale per output channel, (channels,), where both are 8-bit integers."""
    if len(node.inputs) < 2:
        return None
    activation, weight = (None if value is None else value.producer() for value in node.inputs[:2])
    if activation is None or weight is None or constant(weight.inputs[0]) is None:
        return None
    if any(one.op_type != "DequantizeLinear" or _is_fp8(one) for one in (activation, weight)):
        return None
    step, steps = constant(activation.inputs[1]), constant(weight.inputs[1])
    if step is None or steps is None or step.size != 1 or steps.ndim != 1:
        return None
    return np.asarray(step.reshape(()) * steps, np.float32)


def _is_fp8(node: ir.Node) -> bool:
    return any(value is not None and value.dtype in _FP8 for value in node.inputs)


def _is_symmetric(node: ir.Node) -> bool:
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return node.op_type == "QuantizeLinear" and zero is not None and zero.dtype == np.int8 and not zero.any()


def _bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the node that adds the bias and which of its inputs that is."""
    if node.op_type == "Gemm":
        plain = all(
            name not in node.attributes or node.attributes[name].as_float() == 1 for name in ("alpha", "beta")
        )
        biased = len(node.inputs) > _BIAS_INPUT and node.inputs[_BIAS_INPUT] is not None
        return (node, _BIAS_INPUT) if plain and biased else None
    if node.op_type != "MatMul":
        return None
    adder = _only_reader(node.outputs[0])
    if adder is None or adder.op_type != "Add":
        return None
    return adder, 1 if adder.inputs[0] is node.outputs[0] else 0


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def _stored(model: ir.Model, name: str, values: NDArray[np.generic]) -> ir.Value:
    while name in model.graph.initializers:
        name += "_"
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape))
    value.const_value = tensor
    model.graph.register_initializer(value)
    return value


def _before(
    place: ir.Node, origin: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], *attributes: ir.Attr
) -> ir.Value:
    """Put a node before `place` that carries the notes of `origin`."""
    notes = inherited(origin.name or "", origin.metadata_props)
    node = ir.Node("", op_type, inputs, attributes, num_outputs=1, metadata_props=notes)
    assert place.graph is not None
    place.graph.insert_before(place, node)
    return node.outputs[0]
