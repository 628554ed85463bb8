"""Every data type of the protocol, in JSON and in binary, there and back."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from v2_bodies import read, refused, takes
from vitesse.backends.protocol import TensorInfo
from vitesse.errors import BackendError
from vitesse.serve.protocol import HEADER_LENGTH, InferRequest, Signature, write_answer
from vitesse.serve.protocol.tensors import datatype_of
from vitesse.serve.work import Array

DATATYPES = {
    "BOOL": "bool",
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BYTES": "object",
}  # fmt: skip
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Any tensor that the protocol can carry, with finite values."""
    dtype = draw(st.sampled_from(sorted(DATATYPES.values())))
    if dtype == "object":
        return draw(hnp.arrays(object, SHAPES, elements=st.text(max_size=6).map(_utf8), fill=st.nothing()))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    return draw(hnp.arrays(dtype, SHAPES, elements=finite or None))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def model_for(array: Array) -> Signature:
    return takes(array.dtype.name, "N", *array.shape[1:])


def answered(array: Array, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    request = InferRequest("", {}, None, binary, None)
    return write_answer(request, {"x": array}, "m", "1")


def as_request(body: bytes, headers: dict[str, str]) -> tuple[bytes, str | None]:
    """Turn an answer into the request with the same tensors: both have them in the same form."""
    length = int(headers.get(HEADER_LENGTH, len(body)))
    document = json.loads(body[:length])
    header = json.dumps({"inputs": document["outputs"]}).encode()
    return header + body[length:], str(len(header)) if HEADER_LENGTH in headers else None


@given(arrays(), st.booleans())
def test_what_an_answer_says_a_request_says_too_to_the_last_bit(array: Array, binary: bool) -> None:
    body, length = as_request(*answered(array, binary=binary))
    back = read(body, length, model_for(array)).inputs["x"]
    assert back.dtype == array.dtype and back.shape == array.shape
    if array.dtype.kind == "O":
        assert back.ravel().tolist() == array.ravel().tolist()
    else:
        assert back.tobytes() == array.tobytes()


@given(arrays())
def test_nested_lists_mean_the_same_as_a_flat_one(array: Array) -> None:
    flat, _ = as_request(*answered(array, binary=False))
    document = json.loads(flat)
    values = np.array(document["inputs"][0]["data"], object).reshape(array.shape)
    document["inputs"][0]["data"] = values.tolist()
    nested = json.dumps(document).encode()
    left, right = (read(body, None, model_for(array)).inputs["x"] for body in (nested, flat))
    assert left.dtype == right.dtype and left.tolist() == right.tolist()


@pytest.mark.parametrize(("datatype", "dtype"), DATATYPES.items())
def test_every_datatype_has_its_numpy_type(datatype: str, dtype: str) -> None:
    assert datatype_of(dtype) == datatype


def test_a_type_that_the_protocol_lacks_is_named() -> None:
    with pytest.raises(BackendError, match=r"dtype float8_e4m3fn[\s\S]*expected: one of: bool, uint8"):
        datatype_of("float8_e4m3fn")


def request_of(datatype: str, data: list[object]) -> bytes:
    entry = {"name": "x", "shape": [1, len(data)], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [entry]}).encode()


@pytest.mark.parametrize(
    ("datatype", "value", "text"),
    [
        ("INT8", 128, "holds 128; expected -128 to 127, because its datatype is INT8"),
        ("INT8", -129, "holds -129; expected -128 to 127"),
        ("UINT8", -1, "holds -1; expected 0 to 255"),
        ("UINT64", 2**64, "holds 18446744073709551616; expected 0 to 18446744073709551615"),
        ("INT32", 1.5, "holds 1.5; expected whole numbers"),
        ("INT32", True, "holds True; expected whole numbers"),
        ("BOOL", 1, "holds 1; expected true or false, because its datatype is BOOL"),
        ("BYTES", 1, "holds 1; expected strings"),
        ("BYTES", "\ud800", "which is no text in UTF-8; send bytes in binary"),
        ("FP16", 1e6, "holds 1 of 1 values that are NaN, infinite or beyond FP16"),
        ("FP64", {"a": 1}, "holds {'a': 1}; expected numbers"),
    ],
)
def test_a_json_value_that_its_type_cannot_hold_is_refused(datatype: str, value: object, text: str) -> None:
    refusal = refused(request_of(datatype, [value]), None, takes(DATATYPES[datatype], "N", 1))
    assert refusal.status == 400 and text in refusal.text, refusal.text


def test_the_ends_of_a_types_range_are_taken() -> None:
    body = request_of("INT64", [-(2**63), 2**63 - 1])
    assert read(body, None, takes("int64", "N", 2)).inputs["x"].tolist() == [[-(2**63), 2**63 - 1]]


def binary_request(datatype: str, count: int, data: bytes) -> tuple[bytes, str]:
    parameters = {"binary_data_size": len(data)}
    entry = {"name": "x", "shape": [1, count], "datatype": datatype, "parameters": parameters}
    header = json.dumps({"inputs": [entry]}).encode()
    return header + data, str(len(header))


@pytest.mark.parametrize(
    ("count", "data", "text"),
    [
        (1, b"\x01\x00", "unexpected end of input 'x' for model 'm': element 0 of 1 needs 6 bytes"),
        (1, b"\x09\x00\x00\x00ab", "element 0 of 1 needs 13 bytes (4 for its length), 6 are left"),
        (1, b"\xff\xff\xff\xffab", "element 0 of 1 needs 4294967299 bytes"),
        (2, b"\x01\x00\x00\x00a", "element 1 of 2 needs 4 bytes"),
        (1, b"\x01\x00\x00\x00ab", "1 bytes follow its 1 elements"),
        (2**40, b"", "has 1099511627776 elements; at most 4000000 are taken in one request"),
    ],
)
def test_bytes_elements_whose_lengths_do_not_add_up_are_refused(count: int, data: bytes, text: str) -> None:
    refusal = refused(*binary_request("BYTES", count, data), takes("object", "N", "K"))
    assert refusal.status == 400 and text in refusal.text, refusal.text


def test_an_image_travels_as_one_bytes_element() -> None:
    photo = b"\xff\xd8\xff\x00photo"
    body, length = binary_request("BYTES", 1, struct.pack("<I", len(photo)) + photo)
    assert read(body, length, takes("object", "N", 1)).inputs["x"].tolist() == [[photo]]


def test_a_bool_of_another_byte_than_0_or_1_is_refused() -> None:
    signature = takes("bool", "N", 3)
    assert read(*binary_request("BOOL", 3, b"\0\1\1"), signature).inputs["x"].tolist() == [
        [False, True, True]
    ]
    assert "has a byte above 1" in refused(*binary_request("BOOL", 3, b"\0\2\1"), signature).text


def test_tensor_info_of_a_model_names_the_type_in_messages() -> None:
    signature = Signature("m", "1", "p", (TensorInfo("x", ("N", 2), "uint8"),), (), max_batch=1)
    assert "Expected 'UINT8'" in refused(request_of("INT8", [1, 2]), None, signature).text
