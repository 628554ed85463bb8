"""What a request may not be, by the numbers of the catalogue of bad inputs, and what it may."""

import json
import math
import re
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from v2_bodies import (
    SIGNATURE,
    TWO_INPUTS,
    binary_tensor,
    in_binary,
    in_json,
    read,
    refused,
    takes,
    tensor,
)
from vitesse.backends.protocol import TensorInfo
from vitesse.serve.protocol import ShapeRange, Signature, WantedOutput, in_one_piece
from vitesse.serve.refusals import Refusal

GIB = 2**30
RANGED = Signature(
    "m",
    "1",
    "tensorrt_plan",
    SIGNATURE.inputs,
    SIGNATURE.outputs,
    max_batch=4,
    shapes={"x": ShapeRange((1, 2, 8), (2, 2, 16), (4, 2, 32))},
)


def header(text: str) -> tuple[bytes, str | None]:
    return in_json(), text


def plain(*inputs: object, **more: object) -> tuple[bytes, None]:
    return in_json(*inputs, **more), None


# number in the catalogue, (body, header length), what the text says
CASES: list[tuple[int, tuple[bytes, str | None], str]] = [
    (1, (b"", None), r"the request body is empty; expected a JSON object"),
    (1, (b" \n", None), r"the request body is empty"),
    (1, (b"", "0"), r"byte size mismatch for input 'x' .*Expected a multiple of 8 bytes.*got 0"),
    (2, (b"hello", None), r"failed to parse the request JSON: Expecting value"),
    (2, (b"\xff\xd8\xff\xe0", None), r"byte 0 is not UTF-8; .*Inference-Header-Content-Length"),
    (2, (b'{"inputs": [', None), r"failed to parse the request JSON"),
    (2, (b"\xef\xbb\xbf{}", None), r"failed to parse the request JSON.*BOM"),
    (2, (b'"a"', None), r"the request is 'a'; expected a JSON object with \"inputs\""),
    (2, (b"9" * 5000, None), r"failed to parse the request JSON: Exceeds the limit"),
    (2, (b"{}", None), r"\"inputs\" of the request is None; expected a list of one or more inputs"),
    (2, (b'{"inputs": "x"}', None), r"\"inputs\" of the request is 'x'; expected a list"),
    (2, (b'{"inputs": [1]}', None), r"an input of the request is 1; expected an object with a \"name\""),
    (2, (b'{"inputs": [], "inputs": []}', None), r"the key 'inputs' stands twice in one object"),
    (3, header("-1"), r"invalid Inference-Header-Content-Length '-1'; expected .* from 0 to the \d+ bytes"),
    (3, header("100000"), r"invalid Inference-Header-Content-Length '100000'"),
    (3, header("ten"), r"invalid Inference-Header-Content-Length 'ten'"),
    (3, header(""), r"invalid Inference-Header-Content-Length ''"),
    (3, header("1_0"), r"invalid Inference-Header-Content-Length '1_0'"),
    (3, header("1.0"), r"invalid Inference-Header-Content-Length '1.0'"),
    (3, header(chr(0xB2)), r"invalid Inference-Header-Content-Length '\\xb2'"),
    (3, header(str(2**63)), r"invalid Inference-Header-Content-Length '9223372036854775808'"),
    (3, header("9" * 5000), r"invalid Inference-Header-Content-Length '9+\.\.\.9+'"),
    (4, in_binary(tail=bytes(20)), r"4 bytes of the body belong to no input of model 'm'"),
    (4, in_binary(tail=bytes(12)), r"unexpected end of the body: input 'x' .*_size 16, and 12 bytes are left"),
    (4, in_binary(binary_tensor(12), tail=bytes(12)), r"mismatch for input 'x' for model 'm'. Expected 16, got 12"),
    (4, in_binary(binary_tensor(20), tail=bytes(20)), r"mismatch for input 'x' for model 'm'. Expected 16, got 20"),
    (4, in_binary(binary_tensor(-4)), r"binary_data_size of input 'x' for model 'm' is -4; expected a number of"),
    (4, in_binary(binary_tensor(True)), r"binary_data_size of .* is True"),
    (4, in_binary(binary_tensor("16")), r"binary_data_size of .* is '16'"),
    (4, plain(binary_tensor()), r"has a binary_data_size, and the request header Inference-Header.* is missing"),
    (4, in_binary({**binary_tensor(), "data": [1]}), r"has both \"data\" and the parameter binary_data_size"),
    (4, plain({"name": "x", "shape": [1, 2, 2], "datatype": "FP32"}), r"neither \"data\" nor the parameter"),
    (4, plain(tensor([1, 2, 3])), r"unexpected number of values for input 'x' .* 4 for shape \[1,2,2\], got 3"),
    (4, plain(tensor([[[1, 2], [3]]])), r"not nested like its shape \[1,2,2\]: lists of 2 expected at depth 3"),
    (4, plain(tensor([[1, 2], [3, 4]])), r"not nested like its shape \[1,2,2\]: lists of 1 expected at depth 1"),
    (4, plain(tensor([[[1, 2], 3]])), r"not nested like its shape .* lists of 2 expected at depth 3"),
    (4, plain(tensor("abcd")), r"the data of input 'x' for model 'm' is 'abcd'; expected a list of values"),
    (6, plain(tensor(), tensor(name="y")), r"unexpected inference input 'y' for model 'm'; it takes \['x'\]"),
    (7, plain(tensor(), tensor()), r"input 'x' already exists in request for model 'm'"),
    (7, plain(outputs=[{"name": "scores"}] * 2), r"output 'scores' already exists in request for model 'm'"),
    (7, plain(outputs=[{"name": "z"}]), r"unexpected inference output 'z' for model 'm'; .*\['scores', 'labels'\]"),
    (7, plain(outputs={"name": "scores"}), r"\"outputs\" of the request is \{'name': 'scores'\}; expected a list"),
    (8, plain(tensor(datatype="INT64")), r"unexpected datatype 'INT64' for input 'x' .* Expected 'FP32'$"),
    (8, plain(tensor(datatype="float")), r"'float' for .* Expected 'FP32'; that is no datatype of the protocol"),
    (8, plain(tensor(datatype="BF16")), r"Expected 'FP32'; BF16 is not taken, because numpy has no such type"),
    (8, plain(tensor(datatype=None)), r"unexpected datatype None"),
    (8, plain(tensor(datatype=["FP32"])), r"unexpected datatype \['FP32'\]"),
    (8, plain(tensor(["1", 2, 3, 4])), r"holds '1'; expected numbers, because its datatype is FP32"),
    (8, plain(tensor([True, 2, 3, 4])), r"holds True; expected numbers"),
    (8, plain(tensor([None, 2, 3, 4])), r"holds None; expected numbers"),
    (9, plain(tensor(shape=[2, 2])), r"unexpected shape for input 'x' .* \[-1,2,-1\], got \[2,2\] \(it has 3 dim"),
    (9, plain(tensor(shape=[1, 4, 1])), r"unexpected shape for input 'x' .* Expected \[-1,2,-1\], got \[1,4,1\]$"),
    (9, plain(tensor(shape=[1, 2, 0], data=[])), r"unexpected shape .* got \[1,2,0\]"),
    (9, plain(tensor(shape=None)), r"the shape of input 'x' for model 'm' is None; .* such as \[-1,2,-1\]"),
    (9, plain(tensor(shape=[1, 2, 2.0])), r"the shape of input 'x' for model 'm' is \[1, 2, 2.0\]"),
    (9, plain(tensor(shape=[True, 2, 2])), r"the shape of input 'x' for model 'm' is \[True, 2, 2\]"),
    (9, plain(tensor(shape=[1] * 100_000)), r"unexpected shape .* got \[1,1,1,1,1,1,1,1,1,1,1,1,\.\.\.\]"),
    (11, plain(tensor(shape=[0, 2, 2], data=[])), r"the batch size of input 'x' for model 'm' is 0; expected 1 to 4"),
    (12, plain(tensor(shape=[5, 2, 2])), r"inference request batch-size must be <= 4 for 'm', got 5"),
    (13, plain(tensor(shape=[-1, 2, 2])), r"unexpected shape .* got \[-1,2,2\] \(a dimension is from 1 to 2\^63"),
    (13, plain(tensor(shape=[1, 2, -(2**60)])), r"a dimension is from 1 to 2\^63 - 1"),
    (13, plain(tensor(shape=[1, 2, 2**64 + 2])), r"a dimension is from 1 to 2\^63 - 1"),
    (13, plain(tensor(shape=[4, 2, 2**60 + 1])), r"Expected 9223372036854775816 for shape"),
    (13, in_binary(binary_tensor(shape=[4, 2, 2**61])), r"Expected 73786976294838206464, got 16"),
    (14, in_binary(binary_tensor(10, shape=[1, 2, GIB // 8]), tail=bytes(10)), r"Expected 1073741824, got 10"),
    (14, in_binary(binary_tensor(GIB), tail=bytes(10)), r"_size 1073741824, and 10 bytes are left"),
    (14, plain(tensor([1], shape=[4, 2, GIB])), r"Expected 8589934592 for shape .* got 1"),
    (15, in_binary(tail=np.float32([0, np.nan, 0, 0]).tobytes()), r"holds 1 of 4 values that are NaN, infinite"),
    (15, in_binary(tail=np.float32([np.inf, 0, 0, -np.inf]).tobytes()), r"holds 2 of 4 values.*--allow-nonfinite"),
    (15, plain(tensor([1e300, 0, 0, 0])), r"holds 1 of 4 values that are NaN, infinite or beyond FP32"),
    (15, (in_json().replace(b"[1, 2, 3", b"[1e999, 2, 3"), None), r"holds 1 of 4 values"),
    (15, plain(tensor([10**400, 0, 0, 0])), r"holds a number beyond the range of FP32"),
    (16, (b"[" * 250_000, None), r"JSON nesting depth exceeds maximum allowed limit \(64\)"),
    (16, (b'{"a":' * 65 + b"1" + b"}" * 65, None), r"JSON nesting depth exceeds"),
    (17, (in_json().replace(b"[1, 2", b"[NaN, 2"), None), r"NaN is not a JSON value; numbers must be finite"),
    (17, (in_json().replace(b"[1, 2", b"[-Infinity, 2"), None), r"-Infinity is not a JSON value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "header_length", "text"),
    [pytest.param(*request, text, id=f"{number}: {text[:40]}") for number, request, text in CASES],
)
def test_a_bad_request_is_refused_with_what_was_expected(
    body: bytes, header_length: str | None, text: str
) -> None:
    refusal = refused(body, header_length)
    assert (refusal.status, refusal.code) == (400, "bad_request")
    assert re.search(text, refusal.text), refusal.text
    assert len(refusal.text) < 600 and refusal.text.isascii()


@pytest.mark.parametrize(
    ("number", "body", "text"),
    [
        (5, in_json(), r"expected 2 inputs but got 1 inputs for model 'm'. Got input\(s\) \['x'\], but missing "
                       r"required input\(s\) \['size'\]"),
        (12, in_json(tensor(), tensor([1, 2, 3, 4], name="size", shape=[2, 2], datatype="INT64")),
         r"differ in batch size: \{'size': 2, 'x': 1\}"),
        (8, in_json(tensor(), tensor([1, 2.0], name="size", shape=[1, 2], datatype="INT64")),
         r"holds 2.0; expected whole numbers, because its datatype is INT64"),
        (8, in_json(tensor(), tensor([1, 2**63], name="size", shape=[1, 2], datatype="INT64")),
         r"holds 9223372036854775808; expected -9223372036854775808 to 9223372036854775807"),
    ],
)  # fmt: skip
def test_what_only_two_inputs_can_have_wrong_is_refused(number: int, body: bytes, text: str) -> None:
    refusal = refused(body, signature=TWO_INPUTS)
    assert refusal.status == 400 and re.search(text, refusal.text), (number, refusal.text)


@pytest.mark.parametrize("width", [7, 33])
def test_10_a_dimension_outside_the_engines_range_is_refused_with_min_opt_and_max(width: int) -> None:
    refusal = refused(in_json(tensor([0] * 2 * width, shape=[1, 2, width])), signature=RANGED)
    assert refusal.status == 400
    assert (
        f"dimension 2 is {width}, and the engine takes min [1,2,8], opt [2,2,16], max [4,2,32]"
        in refusal.text
    )


@pytest.mark.parametrize("width", [8, 32])
def test_10_the_ends_of_the_engines_range_are_taken(width: int) -> None:
    request = read(in_json(tensor([0] * 2 * width, shape=[1, 2, width])), signature=RANGED)
    assert request.inputs["x"].shape == (1, 2, width)


def test_14_a_shape_of_a_gigabyte_allocates_nothing() -> None:
    body, length = in_binary(binary_tensor(10, shape=[1, 2, GIB // 8]), tail=bytes(10))
    tracemalloc.start()
    try:
        refused(body, length)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_15_nan_is_taken_where_the_server_allows_it() -> None:
    body, length = in_binary(tail=np.float32([0, np.nan, 0, np.inf]).tobytes())
    values = read(body, length, allow_nonfinite=True).inputs["x"].ravel().tolist()
    assert math.isnan(values[1]) and values[3] == math.inf


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"id": 7}, r'"id" of the request is 7; expected printable text of at most 256 characters'),
        ({"id": "a" * 257}, r'"id" of the request is'),
        ({"id": "a\r\nX-Admin: 1"}, r'"id" of the request is'),
        ({"id": "\ud800"}, r'"id" of the request is \'\\ud800'),
        ({"parameters": []}, r"the parameters of the request are \[\]; expected an object"),
        ({"parameters": {"a": [1]}}, r"expected an object of strings, numbers and booleans"),
        ({"parameters": {"timeout": -1}}, r"timeout is -1; expected microseconds, 0 or more"),
        ({"parameters": {"timeout": 1.5}}, r"timeout is 1.5"),
        ({"parameters": {"timeout": 10**400}}, r"timeout is 10+\.\.\.0+; expected"),
        ({"parameters": {"binary_data_output": 1}}, r"binary_data_output of the request is 1; expected true or"),
        ({"outputs": [{"name": "scores", "parameters": {"binary_data": "yes"}}]}, r"binary_data of output 'scores'"),
        ({"outputs": [{"name": "scores", "parameters": {"classification": 3}}]}, r"classification extension is not"),
        ({"outputs": [{"name": ""}]}, r"an output of the request is \{'name': ''\}; expected an object with a"),
        ({"inputs": [{**tensor(), "parameters": {"shared_memory_region": "r"}}]}, r"input 'x' .* in shared memory"),
        ({"inputs": []}, r'"inputs" of the request is \[\]; expected a list of one or more inputs'),
    ],
)  # fmt: skip
def test_fields_beside_the_tensors_are_checked(fields: dict[str, Any], text: str) -> None:
    refusal = refused(json.dumps({"inputs": [tensor()], **fields}).encode())
    assert refusal.status == 400 and re.search(text, refusal.text), refusal.text
    assert refusal.text.isascii()


def test_every_field_of_a_good_request_is_read() -> None:
    request = read(
        in_json(
            id="r-1",
            outputs=[
                {"name": "labels"},
                {"name": "scores", "parameters": {"binary_data": False}},
            ],
            parameters={"binary_data_output": True, "timeout": 1_500_000, "priority": 2},
        )
    )
    assert request.id == "r-1"
    assert request.outputs == (WantedOutput("labels", True), WantedOutput("scores", False))
    assert request.binary_by_default and request.timeout_s == 1.5
    assert request.parameters["priority"] == 2


def test_a_header_that_comes_again_is_checked_against_what_comes_with_it() -> None:
    body, length = in_binary(tail=np.arange(4, dtype=np.float32).tobytes())
    first, again = read(body, length), read(body, length)
    assert first.inputs["x"].tolist() == again.inputs["x"].tolist()
    other = body[: int(length)] + np.full(4, 7, np.float32).tobytes()
    assert set(read(other, length).inputs["x"].ravel().tolist()) == {7}
    assert "4 bytes of the body belong to no input" in refused(body + bytes(4), length).text
    assert "unexpected end of the body" in refused(body[:-4], length).text
    narrower = Signature("m", "1", "p", SIGNATURE.inputs, SIGNATURE.outputs, max_batch=8,
                         shapes={"x": ShapeRange((1, 2, 1), (1, 2, 1), (1, 2, 1))})  # fmt: skip
    assert "unexpected shape" in refused(body, length, narrower).text
    assert read(body, length).inputs["x"].shape == first.inputs["x"].shape


def test_a_refused_header_is_refused_again() -> None:
    body, length = in_binary(tail=np.arange(3, dtype=np.float32).tobytes())
    assert refused(body, length).text == refused(body, length).text


def test_what_a_request_leaves_out_has_a_meaning() -> None:
    request = read(in_json())
    assert (request.id, request.outputs, request.timeout_s) == ("", None, None)
    assert not request.binary_by_default
    assert read(in_json(outputs=[], parameters={"timeout": 0})).outputs is None


def test_inputs_come_in_the_models_order_and_binary_ones_in_the_requests() -> None:
    size = tensor([5, 6], name="size", shape=[1, 2], datatype="INT64")
    values = np.arange(4, dtype=np.float32)
    body, length = in_binary(size, binary_tensor(), tail=values.tobytes())
    inputs = read(body, length, TWO_INPUTS).inputs
    assert list(inputs) == ["x", "size"]
    assert inputs["x"].ravel().tolist() == [0, 1, 2, 3] and inputs["size"].tolist() == [[5, 6]]


def test_a_raw_binary_request_is_one_item_and_wants_binary_answers() -> None:
    request = read(np.arange(6, dtype=np.float32).tobytes(), "0")
    assert request.inputs["x"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert request.binary_by_default and request.outputs is None


@pytest.mark.parametrize(
    ("signature", "size", "text"),
    [
        (SIGNATURE, 12, r"Expected a multiple of 8 bytes for one item of FP32 \[-1,2,-1\], got 12"),
        (takes("float32", "N", 3), 8, r"Expected 12 bytes for one item of FP32 \[-1,3\], got 8"),
        (takes("float32", "N", "H", "W"), 16, r"is not known from a raw binary request: FP32 \[-1,-1,-1\]"),
        (takes("object", "N", 1), 16, r"is not known from a raw binary request: BYTES"),
        (TWO_INPUTS, 16, r"carries one input, and model 'm' has 2; send a JSON header"),
    ],
)
def test_a_raw_binary_request_that_does_not_fit_is_refused(
    signature: Signature, size: int, text: str
) -> None:
    refusal = refused(bytes(size), "0", signature)
    assert refusal.status == 400 and re.search(text, refusal.text), refusal.text


def test_binary_values_are_used_where_they_lie() -> None:
    header = in_json(binary_tensor())
    body = header + b" " * (-len(header) % 4) + bytes(16)
    array = read(body, str(len(body) - 16)).inputs["x"]
    start = np.frombuffer(body, np.uint8).ctypes.data
    assert array.ctypes.data == start + len(body) - 16
    assert not array.flags.writeable


@pytest.mark.parametrize("padding", range(4))
def test_binary_values_are_aligned_wherever_the_header_ends(padding: int) -> None:
    header = in_json(binary_tensor()) + b" " * padding
    array = read(header + np.arange(4, dtype=np.float32).tobytes(), str(len(header))).inputs["x"]
    assert array.flags.aligned and array.flags.c_contiguous and array.ravel().tolist() == [0, 1, 2, 3]


def test_a_binary_image_costs_well_under_a_millisecond() -> None:
    signature = Signature(
        "m", "1", "p", (TensorInfo("x", ("N", 3, 224, 224), "float32"),), SIGNATURE.outputs, max_batch=8
    )
    body, length = in_binary(
        binary_tensor(602_112, shape=[1, 3, 224, 224]), tail=np.ones(150_528, np.float32).tobytes()
    )
    costs = []
    for _ in range(20):
        start = time.process_time()
        read(body, length, signature)
        costs.append(time.process_time() - start)
    assert min(costs) < 1e-3


def test_a_refusal_passes_through_a_with_statement() -> None:
    from contextlib import contextmanager

    @contextmanager
    def region() -> Any:
        yield

    with pytest.raises(Refusal, match="empty"), region():
        read(b"")


@pytest.mark.parametrize("header", [b'{"a":1}', b"{}", b"x" * 63])
def test_a_body_in_one_piece_has_its_tensors_at_an_aligned_address(header: bytes) -> None:
    parts = [header + b"\1\2", b"", b"\3" * 1000]
    body = in_one_piece(parts, str(len(header)))
    assert bytes(body) == b"".join(parts)
    tensor = np.frombuffer(memoryview(body)[len(header) :], np.uint8)
    assert tensor.ctypes.data % 64 == 0


@pytest.mark.parametrize("header", [None, "", "-1", "²", "9" * 5000, "1e3"])
def test_a_header_length_that_is_none_leaves_the_body_as_it_came(header: str | None) -> None:
    assert bytes(in_one_piece([b"ab", b"c"], header)) == b"abc"
    assert bytes(in_one_piece([], header)) == b""
