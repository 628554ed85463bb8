"""What the providers of ONNX Runtime share: reading a file, describing its tensors, wording a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from vitesse.backends.protocol import TensorInfo
from vitesse.backends.refusal import refusal
from vitesse.errors import BackendError

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({kind})": kind for kind in ("int8", "uint8", "int16", "uint16")},
    **{f"tensor({kind})": kind for kind in ("int32", "uint32", "int64", "uint64")},
}


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


def refused(doing: str, path: Path, error: Exception) -> BackendError:
    """Turn what ONNX Runtime raised while `doing` something with a file into a BackendError."""
    return refusal(f"ONNX Runtime {onnxruntime.__version__}", doing, path, error)
