"""An inference request: a JSON header, the binary tensors behind it, and what may be asked of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from vitesse.backends.protocol import TensorInfo
from vitesse.serve.limits import Limits
from vitesse.serve.protocol.json_body import parse_json
from vitesse.serve.protocol.signature import Signature
from vitesse.serve.protocol.tensors import (
    count_nonfinite,
    datatype_of,
    from_binary,
    from_json,
    is_datatype,
    item_bytes,
)
from vitesse.serve.protocol.wording import bad_request, dims, shown
from vitesse.serve.work import Array

# Of requests and answers: how many bytes of the body are JSON; tensors in binary follow.
HEADER_LENGTH = "Inference-Header-Content-Length"

_ID_LENGTH = 256
_REMEMBERED_BYTES = 1024
_ALIGNED_TO = 64  # bytes: a cache line, and the widest vector
_INT64 = 2**63 - 1
# In a tensor's parameters: where Triton would find it in memory that client and server share.
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class WantedOutput:
    """An output asked for by name; `binary` behind the JSON header instead of in it."""

    name: str
    binary: bool


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
    start = -(room.ctypes.data + int(header_length[:20])) % _ALIGNED_TO
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
    document = _document(bytes(body if length is None else body[:length]), limits)
    if not isinstance(document, dict):
        raise bad_request(f'the request is {shown(document)}; expected a JSON object with "inputs"')
    parameters = _parameters(document, "the request")
    binary = _flag(parameters, "binary_data_output", False, "the request")
    tail = memoryview(body)[len(body) if length is None else length :]
    inputs = _inputs(document.get("inputs"), tail, length is not None, signature)
    _check_values(inputs, signature, allow_nonfinite)
    return InferRequest(
        _request_id(document.get("id", "")),
        inputs,
        _wanted(document.get("outputs"), binary, signature),
        binary,
        _timeout(parameters),
        parameters,
    )


def _document(text: bytes, limits: Limits) -> Any:
    """Return the JSON of a request, which nobody changes: clients send the same header with every tensor."""
    return _known(text, limits) if len(text) <= _REMEMBERED_BYTES else parse_json(text, limits)


_known = lru_cache(maxsize=64)(parse_json)


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
    what, datatype = _what(info, signature), datatype_of(info.dtype)
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


def _inputs(entries: object, tail: memoryview, has_tail: bool, signature: Signature) -> dict[str, Array]:
    named = _by_name(entries, "input", signature)
    infos = {info.name: info for info in signature.inputs}
    missing = [name for name in infos if name not in named]
    unknown = next((name for name in named if name not in infos), None)
    if unknown is not None:
        raise bad_request(
            f"unexpected inference input {shown(unknown)} for model '{signature.name}'; it takes {shown(list(infos))}"
        )
    if missing:
        raise bad_request(
            f"expected {len(infos)} inputs but got {len(named)} inputs for model '{signature.name}'. Got input(s) "
            f"{shown(list(named))}, but missing required input(s) {shown(missing)}"
        )
    found: dict[str, Array] = {}
    for name, entry in named.items():
        found[name], tail = _input(entry, infos[name], tail, has_tail, signature)
    if len(tail):
        raise bad_request(
            f"{len(tail)} bytes of the body belong to no input of model '{signature.name}'; the JSON header and every "
            "binary_data_size must add up to the body"
        )
    _check_batches(found, signature)
    return {name: found[name] for name in infos}


def _input(
    entry: Mapping[str, Any], info: TensorInfo, tail: memoryview, has_tail: bool, signature: Signature
) -> tuple[Array, memoryview]:
    """Return an input and the bytes that are left for those after it."""
    what, datatype = _what(info, signature), datatype_of(info.dtype)
    _check_datatype(entry.get("datatype"), datatype, what)
    shape = signature.check_shape(info, entry.get("shape"))
    parameters = _parameters(entry, what)
    if "binary_data_size" not in parameters:
        if "data" not in entry:
            raise bad_request(f'{what} has neither "data" nor the parameter binary_data_size')
        return from_json(datatype, shape, entry["data"], what), tail
    if "data" in entry:
        raise bad_request(f'{what} has both "data" and the parameter binary_data_size; expected one of them')
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise bad_request(f"binary_data_size of {what} is {shown(size)}; expected a number of bytes")
    if not has_tail:
        raise bad_request(f"{what} has a binary_data_size, and the request header {HEADER_LENGTH} is missing")
    if size > len(tail):
        raise bad_request(
            f"unexpected end of the body: {what} has binary_data_size {shown(size)}, and {len(tail)} bytes are left"
        )
    return from_binary(datatype, shape, tail[:size], what), tail[size:]


def _check_datatype(came: object, expected: str, what: str) -> None:
    if came == expected:
        return
    reason = "" if is_datatype(came) else "; that is no datatype of the protocol"
    if came == "BF16":
        reason = "; BF16 is not taken, because numpy has no such type: convert to FP32"
    raise bad_request(f"unexpected datatype {shown(came)} for {what}. Expected '{expected}'{reason}")


def _check_batches(inputs: Mapping[str, Array], signature: Signature) -> None:
    sizes = {name: array.shape[0] for name, array in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise bad_request(
            f"the inputs for model '{signature.name}' differ in batch size: {shown(sizes)}; expected one size for all"
        )


def _check_values(inputs: Mapping[str, Array], signature: Signature, allow_nonfinite: bool) -> None:
    for info in signature.inputs:
        bad = 0 if allow_nonfinite else count_nonfinite(inputs[info.name])
        if bad:
            raise bad_request(
                f"{_what(info, signature)} holds {bad} of {inputs[info.name].size} values that are NaN, infinite or "
                f"beyond {datatype_of(info.dtype)}; expected finite numbers (a server started with --allow-nonfinite "
                "takes them)"
            )


def _wanted(entries: object, binary: bool, signature: Signature) -> tuple[WantedOutput, ...] | None:
    if entries is None or entries == []:
        return None
    names = [info.name for info in signature.outputs]
    wanted = []
    for name, entry in _by_name(entries, "output", signature).items():
        what = f"output {shown(name)} for model '{signature.name}'"
        if name not in names:
            raise bad_request(f"unexpected inference {what}; it gives {shown(names)}")
        parameters = _parameters(entry, what)
        if parameters.get("classification"):
            raise bad_request(f"{what}: the classification extension is not served; ask POST /v1/classify")
        wanted.append(WantedOutput(name, _flag(parameters, "binary_data", binary, what)))
    return tuple(wanted)


def _by_name(entries: object, kind: str, signature: Signature) -> dict[str, Mapping[str, Any]]:
    """Return the objects of "inputs" or "outputs" by their names, in the order in which they came."""
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise bad_request(
            f'"{kind}s" of the request is {shown(entries)}; expected a list of one or more {kind}s'
        )
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise bad_request(f'an {kind} of the request is {shown(entry)}; expected an object with a "name"')
        if name in found:
            raise bad_request(f"{kind} {shown(name)} already exists in request for model '{signature.name}'")
        found[name] = entry
    return found


def _parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict) or any(
        isinstance(value, dict | list) for value in parameters.values()
    ):
        raise bad_request(
            f"the parameters of {what} are {shown(parameters)}; expected an object of strings, numbers and booleans"
        )
    if _SHARED_MEMORY in parameters:
        raise bad_request(f"{what} is in shared memory, which is not served; send the tensor in the request")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool, what: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad_request(f"the parameter {name} of {what} is {shown(value)}; expected true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Return the parameter `timeout`, which counts microseconds, in seconds; 0 leaves it to the server."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value <= _INT64:
        raise bad_request(f"the parameter timeout is {shown(value)}; expected microseconds, 0 or more")
    return value / 1e6 if value else None


def _request_id(value: object) -> str:
    if not isinstance(value, str) or len(value) > _ID_LENGTH or not value.isprintable():
        raise bad_request(
            f'"id" of the request is {shown(value)}; expected printable text of at most {_ID_LENGTH} characters'
        )
    return value


def _what(info: TensorInfo, signature: Signature) -> str:
    return f"input '{info.name}' for model '{signature.name}'"
