"""Data types of the protocol, and a tensor's values as JSON lists and as bytes, little-endian and row-major."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from vitesse.errors import BackendError
from vitesse.serve.protocol.json_body import MOST_VALUES
from vitesse.serve.protocol.wording import bad_request, dims, shown
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Array, all_finite

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
_NAMES = {dtype.name: name for name, dtype in _DTYPES.items()}

_LITTLE = sys.byteorder == "little"

# What a JSON value must be for each kind of dtype. Exactly: a bool is an int to Python, and not to the protocol.
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str}}
_JSON_WORDS = {
    "b": "true or false",
    "i": "whole numbers",
    "u": "whole numbers",
    "f": "numbers",
    "O": "strings",
}


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a numpy dtype, such as "FP32" for "float32".

    `object` is BYTES. Raises BackendError for a dtype that is not served, such as bfloat16 or float8.
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise BackendError(
            f"a tensor of the model has dtype {dtype}",
            expected=f"one of: {', '.join(_NAMES)}",
            fix="serve a graph whose inputs and outputs are of these types",
        ) from None


def is_datatype(name: object) -> bool:
    """Whether it names a type that is served: all of the protocol's but BF16, which numpy does not have."""
    return isinstance(name, str) and name in _DTYPES


def item_bytes(datatype: str) -> int | None:
    """Return the size of one value in bytes; None for BYTES, whose values have a length each."""
    return None if datatype == "BYTES" else _DTYPES[datatype].itemsize


def from_binary(datatype: str, shape: tuple[int, ...], data: memoryview, what: str) -> Array:
    """Return a tensor of `shape` that lies in `data`: read-only, without a copy where the bytes are aligned.

    Args:
        datatype, shape: as checked against the model.
        data: exactly this tensor's bytes. `what`: such as "input 'x' for model 'm'", for messages.

    Raises:
        Refusal: 400 where the size differs from what the shape says (found before anything is allocated).
    """
    if datatype == "BYTES":
        return _bytes_elements(shape, data, what)
    dtype = _DTYPES[datatype]
    check_size(datatype, shape, len(data), what)
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise bad_request(f"{what} has a byte above 1; a BOOL is one byte, 0 or 1")
    array: Array = np.frombuffer(data, dtype).reshape(shape)
    # A JSON header of odd length leaves floats at odd addresses, which runtimes are not made for.
    return np.require(array, requirements="A")


def check_size(datatype: str, shape: tuple[int, ...], size: int, what: str) -> None:
    """Raise Refusal 400 where a tensor's bytes are not as many as its shape says; BYTES say themselves how many."""
    if datatype == "BYTES":
        return
    expected = math.prod(shape) * _DTYPES[datatype].itemsize
    if size != expected:
        raise bad_request(f"input byte size mismatch for {what}. Expected {expected}, got {size}")


def from_json(datatype: str, shape: tuple[int, ...], data: object, what: str) -> Array:
    """Return a tensor of `shape` with the values of a flat list, or of lists nested as the shape says.

    Raises:
        Refusal: 400 for another number of values or nesting, values of a wrong type, and whole numbers out of range.
    """
    dtype = _DTYPES[datatype]
    values = _flat(data, shape, what)
    if not set(map(type, values)) <= _JSON_TYPES[dtype.kind]:
        wrong = next(value for value in values if type(value) not in _JSON_TYPES[dtype.kind])
        raise bad_request(
            f"{what} holds {shown(wrong)}; expected {_JSON_WORDS[dtype.kind]}, because its datatype is {datatype}"
        )
    if dtype.kind == "O":
        return _objects([_encoded(value, what) for value in values], shape)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        worst = next(
            (value for value in (min(values), max(values)) if not bounds.min <= value <= bounds.max), None
        )
        if worst is not None:
            raise bad_request(
                f"{what} holds {shown(worst)}; expected {bounds.min} to {bounds.max}, because its datatype "
                f"is {datatype}"
            )
    try:
        # What is beyond the type's range becomes infinite and is judged with all that is not finite.
        with np.errstate(over="ignore"):
            return (
                np.array(values, np.float64 if dtype.kind == "f" else dtype)
                .astype(dtype, copy=False)
                .reshape(shape)
            )
    except OverflowError as error:
        raise bad_request(f"{what} holds a number beyond the range of {datatype}") from error


def count_nonfinite(array: Array) -> int:
    """Return how many values are NaN or infinite; 0 for types that cannot be."""
    return 0 if all_finite(array) else int(array.size - np.count_nonzero(np.isfinite(array)))


def to_binary(array: Array) -> memoryview | bytes:
    """Return a tensor's bytes, row-major and little-endian; without a copy where it lies so."""
    if array.dtype.kind == "O":
        parts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
        return b"".join(chain.from_iterable((struct.pack("<I", len(part)), part) for part in parts))
    little = (
        array if array.dtype.isnative and _LITTLE else array.astype(array.dtype.newbyteorder("<"), copy=False)
    )
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def to_json(array: Array, name: str) -> list[Any]:
    """Return an output's values as a flat list, row-major.

    Raises:
        Refusal: 500 "backend" where a value is NaN or infinite, or bytes are not UTF-8: JSON has neither.
    """
    bad = count_nonfinite(array)
    if bad:
        raise _not_in_json(name, f"{bad} values that are NaN or infinite")
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind != "O":
        return values
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise _not_in_json(name, "bytes that are not UTF-8") from error


def _not_in_json(name: str, what: str) -> Refusal:
    return Refusal(
        500,
        "backend",
        f"output '{name}' holds {what}, which JSON cannot carry; ask for it in binary (binary_data: true)",
    )


def _flat(data: object, shape: tuple[int, ...], what: str) -> Sequence[Any]:
    if not isinstance(data, list):
        raise bad_request(f"the data of {what} is {shown(data)}; expected a list of values")
    count = math.prod(shape)
    if list not in set(map(type, data)):
        if len(data) != count:
            raise bad_request(
                f"unexpected number of values for {what}. Expected {shown(count)} for shape {dims(shape)}, "
                f"got {len(data)}"
            )
        return data
    rows: list[Any] = [data]
    for axis, size in enumerate(shape):
        if set(map(type, rows)) != {list} or set(map(len, rows)) != {size}:
            raise bad_request(
                f"the data of {what} is not nested like its shape {dims(shape)}: lists of {size} expected at depth "
                f"{axis + 1}; a flat list is taken too"
            )
        rows = list(chain.from_iterable(rows))
    return rows


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise bad_request(
            f"{what} holds {shown(text)}, which is no text in UTF-8; send bytes in binary"
        ) from error


def _bytes_elements(shape: tuple[int, ...], data: memoryview, what: str) -> Array:
    count, left, found = math.prod(shape), len(data), []
    if count > MOST_VALUES:
        raise bad_request(
            f"{what} has {shown(count)} elements; at most {MOST_VALUES} are taken in one request"
        )
    for index in range(count):
        start = len(data) - left
        size = struct.unpack_from("<I", data, start)[0] if left >= 4 else left
        if left < 4 + size:
            raise bad_request(
                f"unexpected end of {what}: element {index} of {count} needs {4 + size} bytes (4 for its length), "
                f"{left} are left"
            )
        found.append(bytes(data[start + 4 : start + 4 + size]))
        left -= 4 + size
    if left:
        raise bad_request(f"input byte size mismatch for {what}. {left} bytes follow its {count} elements")
    return _objects(found, shape)


def _objects(values: list[bytes], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)
