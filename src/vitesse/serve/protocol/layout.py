"""What the JSON header of an inference request says, checked against the model: where each input lies in the body.

Clients send the same header with every tensor: what was checked once need not be checked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vitesse.backends.protocol import TensorInfo
from vitesse.serve.limits import Limits
from vitesse.serve.protocol.json_body import parse_json
from vitesse.serve.protocol.signature import Signature
from vitesse.serve.protocol.tensors import check_size, datatype_of, from_binary, from_json, is_datatype
from vitesse.serve.protocol.wording import bad_request, shown
from vitesse.serve.work import Array

# Of requests and answers: how many bytes of the body are JSON; tensors in binary follow.
HEADER_LENGTH = "Inference-Header-Content-Length"

_ID_LENGTH = 256
_REMEMBERED_BYTES = 1024
_INT64 = 2**63 - 1
# In a tensor's parameters: where Triton would find it in memory that client and server share.
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class WantedOutput:
    """An output asked for by name; `binary` behind the JSON header instead of in it."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InputPlace:
    """One input, checked but for its values: `size` bytes behind the header from `start` on, or `data` in the JSON.

    Args:
        what: it is called in messages.
    """

    name: str
    what: str
    datatype: str
    shape: tuple[int, ...]
    start: int = 0
    size: int | None = None
    data: object = None

    def array(self, tail: memoryview) -> Array:
        """Return the tensor; raises Refusal 400 where the values are not of its type."""
        if self.size is None:
            return from_json(self.datatype, self.shape, self.data, self.what)
        return from_binary(self.datatype, self.shape, tail[self.start : self.start + self.size], self.what)


@dataclass(frozen=True)
class Layout:
    """A request but for its values; as `request.InferRequest` has it. `places` are in the order in which they came."""

    id: str
    places: tuple[InputPlace, ...]
    order: tuple[str, ...]
    outputs: tuple[WantedOutput, ...] | None
    binary_by_default: bool
    timeout_s: float | None
    parameters: Mapping[str, Any]

    def inputs(self, tail: memoryview) -> dict[str, Array]:
        """Return the tensors in the model's order; `tail` is the body behind the header."""
        found = {place.name: place.array(tail) for place in self.places}
        return {name: found[name] for name in self.order}


def layout_of(text: bytes, tail_bytes: int | None, signature: Signature, limits: Limits) -> Layout:
    """Read a request's JSON and check it against the model.

    Args:
        text: the JSON. tail_bytes: that come behind it; None where the request says that the JSON is all.
        signature: what the model takes. limits: of the JSON.

    Raises:
        Refusal: 400 "bad_request" with what came and what was expected; 413 "too_large" for JSON of too many values.
    """
    read = _remembered if len(text) <= _REMEMBERED_BYTES else _read
    return read(text, tail_bytes, signature, limits)


def _read(text: bytes, tail_bytes: int | None, signature: Signature, limits: Limits) -> Layout:
    document = parse_json(text, limits)
    if not isinstance(document, dict):
        raise bad_request(f'the request is {shown(document)}; expected a JSON object with "inputs"')
    parameters = _parameters(document, "the request")
    binary = _flag(parameters, "binary_data_output", False, "the request")
    places = _places(document.get("inputs"), tail_bytes, signature)
    return Layout(
        _request_id(document.get("id", "")),
        places,
        tuple(info.name for info in signature.inputs),
        _wanted(document.get("outputs"), binary, signature),
        binary,
        _timeout(parameters),
        parameters,
    )


_remembered = lru_cache(maxsize=64)(_read)


def _places(entries: object, tail_bytes: int | None, signature: Signature) -> tuple[InputPlace, ...]:
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
    places: list[InputPlace] = []
    end = 0
    for name, entry in named.items():
        place = _place(entry, infos[name], end, tail_bytes, signature)
        end += place.size or 0
        places.append(place)
    if end < (tail_bytes or 0):
        raise bad_request(
            f"{(tail_bytes or 0) - end} bytes of the body belong to no input of model '{signature.name}'; the JSON "
            "header and every binary_data_size must add up to the body"
        )
    _check_batches(places, signature)
    return tuple(places)


def _place(
    entry: Mapping[str, Any], info: TensorInfo, start: int, tail_bytes: int | None, signature: Signature
) -> InputPlace:
    """Return where an input lies whose bytes would begin at `start`."""
    what, datatype = called(info, signature), datatype_of(info.dtype)
    _check_datatype(entry.get("datatype"), datatype, what)
    shape = signature.check_shape(info, entry.get("shape"))
    parameters = _parameters(entry, what)
    if "binary_data_size" not in parameters:
        if "data" not in entry:
            raise bad_request(f'{what} has neither "data" nor the parameter binary_data_size')
        return InputPlace(info.name, what, datatype, shape, data=entry["data"])
    if "data" in entry:
        raise bad_request(f'{what} has both "data" and the parameter binary_data_size; expected one of them')
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise bad_request(f"binary_data_size of {what} is {shown(size)}; expected a number of bytes")
    if tail_bytes is None:
        raise bad_request(f"{what} has a binary_data_size, and the request header {HEADER_LENGTH} is missing")
    if size > tail_bytes - start:
        raise bad_request(
            f"unexpected end of the body: {what} has binary_data_size {shown(size)}, and {tail_bytes - start} bytes "
            "are left"
        )
    check_size(datatype, shape, size, what)
    return InputPlace(info.name, what, datatype, shape, start, size)


def _check_datatype(came: object, expected: str, what: str) -> None:
    if came == expected:
        return
    reason = "" if is_datatype(came) else "; that is no datatype of the protocol"
    if came == "BF16":
        reason = "; BF16 is not taken, because numpy has no such type: convert to FP32"
    raise bad_request(f"unexpected datatype {shown(came)} for {what}. Expected '{expected}'{reason}")


def _check_batches(places: Sequence[InputPlace], signature: Signature) -> None:
    sizes = {place.name: place.shape[0] for place in places}
    if len(set(sizes.values())) > 1:
        raise bad_request(
            f"the inputs for model '{signature.name}' differ in batch size: {shown(sizes)}; expected one size for all"
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


def called(info: TensorInfo, signature: Signature) -> str:
    """Return what messages call an input."""
    return f"input '{info.name}' for model '{signature.name}'"
