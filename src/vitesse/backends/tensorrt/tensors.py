"""The inputs and outputs of an engine: names, shapes and types as numpy knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitesse.backends.protocol import TensorInfo
from vitesse.backends.tensorrt.options import Shape
from vitesse.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

# TensorRT's name of a type → numpy's. The others have none that a caller could feed.
DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
FREE = "?"


def tensors_of(engine: tensorrt.ICudaEngine) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Return inputs and outputs in the engine's order; a free dimension is "?".

    Raises:
        BackendError: a type that numpy lacks (bfloat16, FP8, INT4), a tensor that must lie in host memory, or a
            TensorRT without named tensors (before 8.5).
    """
    if not hasattr(engine, "num_io_tensors"):
        raise BackendError(
            "this TensorRT has no named tensors",
            expected="version 8.5 or newer",
            fix="pip install --upgrade tensorrt",
        )
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode = engine.get_tensor_mode(name).name
        (inputs if mode == "INPUT" else outputs).append(_info(engine, name))
    return tuple(inputs), tuple(outputs)


def output_shapes(context: tensorrt.IExecutionContext) -> dict[str, Shape]:
    """Return the shapes of all outputs, once every input shape is set.

    Raises:
        BackendError: an input has no shape yet, or an output's shape depends on the values of the inputs.
    """
    missing = context.infer_shapes() if hasattr(context, "infer_shapes") else []
    if missing:
        raise BackendError(
            f"TensorRT needs more to know the shapes: {', '.join(missing)}",
            expected="an engine whose output shapes follow from the input shapes",
            cause="an input's values are used as a shape",
            fix="export the model so that sizes come from shapes, or with them fixed",
        )
    shapes = {}
    engine = context.engine
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name).name == "OUTPUT":
            shapes[name] = _sizes(context.get_tensor_shape(name))
    for name, shape in shapes.items():
        if any(size < 0 for size in shape):
            raise BackendError(
                f"the shape of the output {name!r} is {_free(shape)}, and depends on the values of the inputs",
                expected="output shapes that follow from the input shapes, so that buffers can be made before",
                cause="an operator such as NonZero or NonMaxSuppression",
                fix="export the model without it (top-k of all queries instead), or use --target cuda",
            )
    return shapes


def _info(engine: tensorrt.ICudaEngine, name: str) -> TensorInfo:
    dtype = engine.get_tensor_dtype(name).name
    shape = _free(_sizes(engine.get_tensor_shape(name)))
    if dtype not in DTYPES:
        raise BackendError(
            f"{name!r} of the engine is a {dtype}",
            expected=f"one of: {', '.join(DTYPES)}",
            cause="numpy has no such type, so that it can neither be fed nor read",
            fix="build from a graph whose inputs and outputs are float32 or float16; inside, any type will do",
        )
    if engine.get_tensor_location(name).name == "HOST":
        raise BackendError(
            f"{name!r} of the engine must lie in host memory",
            expected="tensors on the device",
            cause="its values are used as a shape",
            fix="export the model so that sizes come from shapes, or with them fixed",
        )
    return TensorInfo(name, shape, DTYPES[dtype])


def _sizes(dims: tensorrt.Dims) -> Shape:
    return tuple(int(dims[axis]) for axis in range(len(dims)))


def _free(shape: Shape) -> tuple[int | str, ...]:
    return tuple(size if size >= 0 else FREE for size in shape)
