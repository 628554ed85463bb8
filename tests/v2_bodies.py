"""Requests of the Open Inference Protocol for tests: a model's signature and bodies that fit it."""

import json
from typing import Any

import numpy as np
import pytest

from vitesse.backends.protocol import TensorInfo
from vitesse.serve.limits import Limits
from vitesse.serve.protocol import InferRequest, Signature, parse_infer
from vitesse.serve.refusals import Refusal

SIGNATURE = Signature(
    "m",
    "1",
    "onnxruntime_onnx",
    (TensorInfo("x", ("N", 2, "W"), "float32"),),
    (TensorInfo("scores", ("N", 3), "float32"), TensorInfo("labels", ("N", 3), "int64")),
    max_batch=4,
)
TWO_INPUTS = Signature(
    "m",
    "1",
    "onnxruntime_onnx",
    (TensorInfo("x", ("N", 2, "W"), "float32"), TensorInfo("size", ("N", 2), "int64")),
    SIGNATURE.outputs,
    max_batch=4,
)


def takes(dtype: str, *shape: int | str) -> Signature:
    """Return a model with one input `x` of this dtype and shape."""
    return Signature("m", "1", "p", (TensorInfo("x", shape, dtype),), SIGNATURE.outputs, max_batch=1000)


def tensor(
    data: object = None, *, name: str = "x", shape: object = (1, 2, 2), datatype: object = "FP32"
) -> dict[str, Any]:
    """Return an input with its values in JSON: four numbers of shape [1,2,2] unless told."""
    return {
        "name": name,
        "shape": shape,
        "datatype": datatype,
        "data": [1, 2, 3, 4] if data is None else data,
    }


def binary_tensor(size: object = 16, *, name: str = "x", shape: object = (1, 2, 2)) -> dict[str, Any]:
    """Return an input of FP32 whose values come behind the JSON header."""
    return {"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}


def in_json(*inputs: object, **more: object) -> bytes:
    """Return a body that is JSON only; `more` are other fields of the request."""
    return json.dumps({"inputs": list(inputs) or [tensor()], **more}).encode()


def in_binary(*inputs: object, tail: bytes = bytes(16), **more: object) -> tuple[bytes, str]:
    """Return a body with a binary part and its header length: sixteen zero bytes for one input unless told."""
    header = in_json(*(inputs or [binary_tensor()]), **more)
    return header + tail, str(len(header))


def read(
    body: bytes,
    header_length: str | None = None,
    signature: Signature = SIGNATURE,
    limits: Limits | None = None,
    *,
    allow_nonfinite: bool = False,
) -> InferRequest:
    """Parse with the limits' defaults."""
    return parse_infer(body, header_length, signature, limits or Limits(), allow_nonfinite=allow_nonfinite)


def refused(
    body: bytes,
    header_length: str | None = None,
    signature: Signature = SIGNATURE,
    limits: Limits | None = None,
) -> Refusal:
    """Return the refusal of a body, and see that a good request is read afterwards."""
    with pytest.raises(Refusal) as caught:
        read(body, header_length, signature, limits)
    assert read(in_json()).inputs["x"].tolist() == [[[1, 2], [3, 4]]]
    return caught.value


def one(dtype: str, values: object) -> Any:
    """Return values as an array."""
    return np.array(values, dtype)
