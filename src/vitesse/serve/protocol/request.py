"""An inference request: a JSON header, the binary tensors behind it, and what may be asked of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitesse.serve.limits import Limits
from vitesse.serve.protocol.layout import HEADER_LENGTH, WantedOutput, called, layout_of
from vitesse.serve.protocol.signature import Signature
from vitesse.serve.protocol.tensors import count_nonfinite, datatype_of, from_binary, item_bytes
from vitesse.serve.protocol.wording import bad_request, dims, shown
from vitesse.serve.work import Array

_ALIGNED_TO = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class InferRequest:
    """What a client asked, checked against the model.

    Args:
        id: to be echoed, printable, at most 256 characters; empty where none came.
        inputs: by name, in the model's order; read-only, they lie in the request's body where they came in binary.
        outputs: in the order asked for; None for all.
        binary_by_default: how outputs travel that were not asked for by name.
        timeout_s: how long the client will wait for an answer; None where it did not say.
        parameters: of the request, as they came.
    """

    id: str
    inputs: dict[str, Array]
    outputs: tuple[WantedOutput, ...] | None
    binary_by_default: bool
    timeout_s: float | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def in_one_piece(parts: Sequence[bytes], header_length: str | None) -> bytes | memoryview:
    """Join a body that came in parts so that its first tensor begins at an address that runtimes take without a copy.

    Args:
        header_length: as for `parse_infer`; what is no sane length there changes nothing but the address.
    """
    if header_length is None or not header_length.isascii() or not header_length.isdigit():
        return b"".join(parts)
    size = sum(map(len, parts))
    room = np.empty(size + _ALIGNED_TO, np.uint8)
    address: int = room.__array_interface__["data"][0]  # `room.ctypes` takes ten times as long
    start = -(address + int(header_length[:20])) % _ALIGNED_TO
    body = room[start : start + size].data
    end = 0
    for part in parts:
        body[end : end + len(part)] = part
        end += len(part)
    return body


def parse_infer(
    body: bytes | memoryview,
    header_length: str | None,
    signature: Signature,
    limits: Limits,
    *,
    allow_nonfinite: bool = False,
) -> InferRequest:
    """Read the body of `POST v2/models/{name}/infer`; it must stay unchanged while the inputs are used.

    Args:
        body: after `inflate`, or `in_one_piece`.
        header_length: the request header `HEADER_LENGTH`: None for a body of JSON only, "0" for a body that is nothing
            but one input of one item in binary.
        signature: what the model takes.
        limits: of the JSON part.
        allow_nonfinite: take NaN and infinite values.

    Raises:
        Refusal: 400 "bad_request" with what came and what was expected, whatever the bytes are; 413 "too_large" for
            JSON of too many values.
    """
    length = _header_length(header_length, len(body))
    if length == 0:
        return _raw_request(body, signature, allow_nonfinite)
    text = bytes(body if length is None else body[:length])
    tail = memoryview(body)[len(body) if length is None else length :]
    layout = layout_of(text, None if length is None else len(tail), signature, limits)
    inputs = layout.inputs(tail)
    _check_values(inputs, signature, allow_nonfinite)
    return InferRequest(
        layout.id, inputs, layout.outputs, layout.binary_by_default, layout.timeout_s, layout.parameters
    )


def _header_length(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= size):
        raise bad_request(
            f"invalid {HEADER_LENGTH} {shown(text)}; expected the length of the JSON part in bytes, from 0 to the "
            f"{size} bytes of the body (after Content-Encoding)"
        )
    return int(digits)


def _raw_request(body: bytes | memoryview, signature: Signature, allow_nonfinite: bool) -> InferRequest:
    if len(signature.inputs) != 1:
        raise bad_request(
            f"a raw binary request ({HEADER_LENGTH}: 0) carries one input, and model '{signature.name}' has "
            f"{len(signature.inputs)}; send a JSON header"
        )
    info = signature.inputs[0]
    what, datatype = called(info, signature), datatype_of(info.dtype)
    free = [axis for axis, size in enumerate(info.shape) if axis and not isinstance(size, int)]
    width = item_bytes(datatype)
    if len(free) > 1 or width is None:
        raise bad_request(
            f"the shape of {what} is not known from a raw binary request: {datatype} {dims(info.shape)}; "
            "send a JSON header"
        )
    shape = [size if isinstance(size, int) else 1 for size in info.shape]
    for size in shape:
        width *= size
    for axis in free:
        shape[axis] = len(body) // width
    if len(body) != width * (shape[free[0]] if free else 1) or not body:
        raise bad_request(
            f"input byte size mismatch for {what}. Expected {'a multiple of ' * bool(free)}{width} bytes for one item "
            f"of {datatype} {dims(info.shape)}, got {len(body)}"
        )
    checked = signature.check_shape(info, shape)
    inputs = {info.name: from_binary(datatype, checked, memoryview(body), what)}
    _check_values(inputs, signature, allow_nonfinite)
    return InferRequest("", inputs, None, True, None)


def _check_values(inputs: Mapping[str, Array], signature: Signature, allow_nonfinite: bool) -> None:
    for info in signature.inputs:
        bad = 0 if allow_nonfinite else count_nonfinite(inputs[info.name])
        if bad:
            raise bad_request(
                f"{called(info, signature)} holds {bad} of {inputs[info.name].size} values that are NaN, infinite or "
                f"beyond {datatype_of(info.dtype)}; expected finite numbers (a server started with --allow-nonfinite "
                "takes them)"
            )
