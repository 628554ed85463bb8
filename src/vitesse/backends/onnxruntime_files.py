"""What the providers of ONNX Runtime share: reading a file, describing its tensors, wording a refusal."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto

from vitesse.backends.protocol import TensorInfo
from vitesse.backends.refusal import refusal
from vitesse.backends.tensorrt.graph_types import quantised_type
from vitesse.errors import BackendError

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({kind})": kind for kind in ("int8", "uint8", "int16", "uint16")},
    **{f"tensor({kind})": kind for kind in ("int32", "uint32", "int64", "uint64")},
}

# The end of QuantizeLinear and of DequantizeLinear.
_QUANTISER = b"uantizeLinear"
_FP8 = frozenset(
    (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ)
)


def tensor_info(node: Any, path: Path) -> TensorInfo:
    """Describe an input or output of a session; raises BackendError for what has no numpy dtype."""
    if node.type not in _DTYPES:
        raise BackendError(
            f"{node.name!r} of {path} is a {node.type}",
            expected=f"one of: {', '.join(_DTYPES)}",
            cause="sequences, maps, strings and types without a numpy dtype cannot be fed",
        )
    shape = tuple(size if isinstance(size, int) else str(size or "?") for size in node.shape)
    return TensorInfo(node.name, shape, _DTYPES[node.type])


def read_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; raises BackendError where it is gone or damaged."""
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf and onnx raise a dozen kinds
        raise refused("reading", path, error) from error


def quantises_to_fp8(path: Path) -> bool:
    """Whether a file has Q/DQ of FP8; a damaged one is refused when it is loaded."""
    try:
        # Graphs without any Q/DQ are most, and large ones take a while to parse.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_QUANTISER) < 0:
                return False
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # protobuf and onnx raise a dozen kinds
        return False
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    constants = (node for node in graph.node if node.op_type == "Constant")
    types |= {node.output[0]: one.t.data_type for node in constants for one in node.attribute}
    quantisers = (node for node in graph.node if node.op_type.encode().endswith(_QUANTISER))
    return any(quantised_type(node, types) in _FP8 for node in quantisers)


def refused(doing: str, path: Path, error: Exception) -> BackendError:
    """Turn what ONNX Runtime raised while `doing` something with a file into a BackendError."""
    return refusal(f"ONNX Runtime {onnxruntime.__version__}", doing, path, error)
