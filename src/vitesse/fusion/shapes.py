"""Shapes of all values, with a dynamic batch kept as a symbol, inferred without copying the weights."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from vitesse.fusion.opset import quiet

# Tensors up to this size may be shapes, axes or scales, which inference reads; larger ones are weights.
_SMALL_BYTES = 1024
_UNLIMITED = 2**31 - 1

_log = logging.getLogger(__name__)


def infer_shapes(model: ir.Model) -> None:
    """Set the shapes and types of all values, in place; what an exporter noted about inner values is dropped.

    ONNX Runtime's symbolic inference does it, since it keeps a symbolic batch through Resize, Reshape and
    arithmetic on shapes, where that of onnx loses it; where an operator is unknown to it, that of onnx does.
    """
    outputs = {id(value) for value in model.graph.outputs}
    noted = {}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                noted[id(value)] = value.shape
                value.shape = None
    try:
        inferred = _symbolically(_without_weights(model))
    except Exception as error:  # it raises plain Exception and whatever sympy raises
        _log.info("symbolic shape inference gave up: %s", error)
        complete_shapes(model)
    else:
        _take_over(model, inferred)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                value.shape = noted.get(id(value))


def _symbolically(model: onnx.ModelProto) -> onnx.ModelProto:
    """Do what `SymbolicShapeInference.infer_shapes` does, but leave no file in the current folder when it gives up."""
    inference = SymbolicShapeInference(_UNLIMITED, auto_merge=True, guess_output_rank=False, verbose=0)
    inference._preprocess(model)
    complete = False
    while inference.run_:
        complete = inference._infer_impl()
    if not complete:
        raise ValueError("an operator whose output it cannot tell")
    inference._update_output_from_vi()
    inferred: onnx.ModelProto = inference.out_mp_
    return inferred


def complete_shapes(model: ir.Model) -> None:
    """Add the shapes of values that have none yet, as a rewrite leaves them; the known ones are kept."""
    with quiet("onnx_ir"):  # it warns about every value of unknown type, which inference then fills in
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The graph as a proto in which large initialisers are inputs of the same name."""
    large = [v for v in model.graph.initializers.values() if v.const_value is not None and _is_large(v)]
    inputs = list(model.graph.inputs)
    try:
        for value in large:
            assert value.name is not None and value.const_value is not None
            value.shape, value.dtype = ir.Shape(value.const_value.numpy().shape), value.const_value.dtype
            model.graph.initializers.pop(value.name)
            if value not in inputs:
                model.graph.inputs.append(value)
        return ir.to_proto(model)
    finally:
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        for value in large:
            model.graph.register_initializer(value)


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES


def _take_over(model: ir.Model, inferred: onnx.ModelProto) -> None:
    infos = {info.name: info.type for info in inferred.graph.value_info}
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            proto = infos.get(value.name or "")
            if proto is None or id(value) in outputs or proto.WhichOneof("value") != "tensor_type":
                continue
            value.type = ir.serde.deserialize_type_proto_for_type(proto) or value.type
            value.shape = ir.serde.deserialize_type_proto_for_shape(proto)
