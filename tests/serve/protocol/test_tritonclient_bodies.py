"""Bodies of a client that nobody here wrote, made and read without a network."""

import gzip
import zlib
from typing import Any

import numpy as np
import pytest

from v2_bodies import TWO_INPUTS, read
from vitesse.serve.limits import Limits
from vitesse.serve.protocol import HEADER_LENGTH, inflate, write_answer

client = pytest.importorskip(
    "tritonclient.http", reason="needs tritonclient: pip install 'tritonclient[http]'"
)

X = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
SIZE = np.int64([[5, 6], [7, 8]])
OUTPUTS = {"scores": np.float32([[0.1, 0.2, 0.7]] * 2), "labels": np.int64([[3, 1, 2]] * 2)}


def asked(*, binary: bool, outputs: list[Any] | None = None, **options: Any) -> tuple[bytes, str | None]:
    """Return the client's body and header for the two arrays."""
    inputs = [
        client.InferInput("x", X.shape, "FP32").set_data_from_numpy(X, binary_data=binary),
        client.InferInput("size", SIZE.shape, "INT64").set_data_from_numpy(SIZE, binary_data=binary),
    ]
    body, length = client.InferenceServerClient.generate_request_body(inputs, outputs=outputs, **options)
    return body, None if length is None else str(length)


@pytest.mark.parametrize("binary", [True, False])
def test_its_tensors_are_read(binary: bool) -> None:
    request = read(*asked(binary=binary, request_id="r", priority=1, timeout=2000), TWO_INPUTS)
    assert np.array_equal(request.inputs["x"], X) and np.array_equal(request.inputs["size"], SIZE)
    assert (request.id, request.timeout_s) == ("r", 0.002)
    assert request.binary_by_default


@pytest.mark.parametrize("ask", [None, True, False])
def test_it_reads_the_answer_in_the_form_it_asked_for(ask: bool | None) -> None:
    outputs = (
        [client.InferRequestedOutput(name, binary_data=ask) for name in OUTPUTS] if ask is not None else None
    )
    request = read(*asked(binary=True, outputs=outputs), TWO_INPUTS)
    body, headers = write_answer(request, OUTPUTS, "m", "1")
    assert (HEADER_LENGTH in headers) is (ask is not False)
    length = int(headers[HEADER_LENGTH]) if HEADER_LENGTH in headers else None
    result = client.InferenceServerClient.parse_response_body(body, header_length=length)
    for name, expected in OUTPUTS.items():
        found = result.as_numpy(name)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_its_header_length_counts_bytes_before_compression(algorithm: str) -> None:

    body, length = asked(binary=True)
    packed = gzip.compress(body) if algorithm == "gzip" else zlib.compress(body)
    request = read(inflate(packed, algorithm, Limits()), length, TWO_INPUTS)
    assert np.array_equal(request.inputs["x"], X)
