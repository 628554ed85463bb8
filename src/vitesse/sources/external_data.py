"""Weights that lie beside the ONNX file: only inside the model's own folder, and only when they are complete.

A model file is untrusted input. A location such as `../../etc/passwd` would be read into a tensor and could
leave the machine inside an artifact, so every location is resolved, links included, before it is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from vitesse.errors import ModelError

_PACKED_BITS: dict[int, int] = {
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
}


def external_tensors(model: onnx.ModelProto) -> list[TensorProto]:
    """Return every tensor stored outside the file, in subgraphs and functions too."""
    found = list(_in_graph(model.graph))
    for function in model.functions:
        found.extend(tensor for node in function.node for tensor in _in_node(node))
    return [tensor for tensor in found if tensor.data_location == TensorProto.EXTERNAL]


def load_external(tensor: TensorProto, path: Path) -> None:
    """Read the tensor's bytes into it; `path` is the model file the location is relative to.

    Raises:
        ModelError: the location leaves the model's folder, the file is missing, or it holds too few bytes.
    """
    info = {entry.key: entry.value for entry in tensor.external_data}
    where = locate(info.get("location", ""), path, tensor.name)
    expected = stored_bytes(tensor)
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", expected))
    except ValueError as error:
        raise ModelError(
            f"{path}: weight {tensor.name!r} has the external data entry {info}",
            expected="whole numbers for offset and length",
            cause="the file is damaged",
            fix="export the model again",
        ) from error
    held = where.stat().st_size
    if length != expected or offset < 0 or offset + length > held:
        raise ModelError(
            f"{path}: weight {tensor.name!r} ({'×'.join(map(str, tensor.dims))}) takes {expected} bytes of "
            f"{where.name}, stored as bytes {offset} to {offset + length}; the file has {held}",
            expected=f"at least {offset + expected} bytes in {where.name}",
            cause="the external data was cut off while it was copied, or belongs to another model",
            fix=f"copy or download {where.name} again, or export the model again",
        )
    with where.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def locate(location: str, path: Path, tensor: str) -> Path:
    """Return the data file of a location relative to the model `path`.

    A link is followed only where it ends in the folder the model file itself lies in, directly or through the
    same kind of link (the layout of download caches).
    """
    expected = f"a relative path inside {path.parent or Path()}"
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    target = (path.parent / location).resolve()
    homes = (path.parent.resolve(), path.resolve().parent)
    if not location or absolute or ".." in parts or not any(target.is_relative_to(home) for home in homes):
        raise ModelError(
            f"{path}: weight {tensor!r} points outside the model's folder: {location!r}",
            expected=expected,
            cause="the model was built to read other files, or was moved without its data",
            fix="do not use this file unless you trust it; export the model again with its data beside it",
        )
    if not target.is_file():
        raise ModelError(
            f"{path}: its external data {location!r} is missing",
            expected=f"the file {path.parent / location}",
            cause="only the .onnx file was copied or downloaded",
            fix=f"put {location} beside {path.name}",
        )
    return target


def stored_bytes(tensor: TensorProto) -> int:
    """Return how many bytes the tensor's values take as raw data."""
    kind = int(tensor.data_type)
    bits = _PACKED_BITS.get(kind) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return (math.prod(int(side) for side in tensor.dims) * bits + 7) // 8


def _in_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _in_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _in_graph(graph)
