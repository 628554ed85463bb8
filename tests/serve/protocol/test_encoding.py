"""Cases 24 and 25 of the catalogue: compressed bodies."""

import gzip
import tracemalloc
import zlib

import pytest

from vitesse.serve.limits import MIB, Limits
from vitesse.serve.protocol import inflate
from vitesse.serve.refusals import Refusal

BODY = b'{"inputs": []}' * 100


def refused(body: bytes, encoding: str, limits: Limits | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        inflate(body, encoding, limits or Limits())
    return caught.value


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (BODY, None),
        (BODY, ""),
        (BODY, "identity"),
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), " GZIP"),
        (gzip.compress(BODY), "x-gzip"),
        (zlib.compress(BODY), "deflate"),
    ],
)
def test_a_body_comes_out_as_it_was(body: bytes, encoding: str | None) -> None:
    assert inflate(body, encoding, Limits()) == BODY


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "gzip;q=1"])
def test_25_another_encoding_is_refused_with_those_taken(encoding: str) -> None:
    refusal = refused(BODY, encoding)
    assert (refusal.status, refusal.code) == (415, "unsupported")
    assert refusal.text == f"unsupported Content-Encoding {encoding!r}; expected gzip, deflate or none"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_24_a_bomb_is_refused_at_the_limit_and_not_inflated_further(encoding: str) -> None:
    zeros = bytes(64 * MIB)
    bomb = gzip.compress(zeros) if encoding == "gzip" else zlib.compress(zeros)
    del zeros
    tracemalloc.start()
    try:
        refusal = refused(bomb, encoding, Limits(inflated_bytes=MIB))
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert (refusal.status, refusal.code) == (413, "too_large")
    assert "inflates to more than the 1048576 bytes allowed" in refusal.text


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    limits = Limits(inflated_bytes=len(BODY))
    assert inflate(gzip.compress(BODY), "gzip", limits) == BODY
    assert refused(gzip.compress(BODY + b"x"), "gzip", limits).status == 413


@pytest.mark.parametrize(
    ("body", "encoding", "text"),
    [
        (b"", "gzip", "the gzip stream of the request body ends early, after 0 bytes"),
        (gzip.compress(BODY)[:-9], "gzip", "ends early"),
        (gzip.compress(BODY)[:-5] + b"\0\0\0\0\0", "gzip", "the request body is not gzip: Error -3"),
        (gzip.compress(BODY) + b"tail", "gzip", "4 bytes follow the gzip stream"),
        (
            gzip.compress(BODY) * 2,
            "gzip",
            "bytes follow the gzip stream of the request body; expected one stream",
        ),
        (BODY, "gzip", "the request body is not gzip"),
        (gzip.compress(BODY), "deflate", "the request body is not deflate"),
    ],
)
def test_a_damaged_stream_is_refused(body: bytes, encoding: str, text: str) -> None:
    refusal = refused(body, encoding)
    assert (refusal.status, refusal.code) == (400, "bad_request") and text in refusal.text, refusal.text
