"""Whatever the bytes are: an answer or a refusal, nothing else."""

import gzip
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from v2_bodies import SIGNATURE, TWO_INPUTS, binary_tensor, in_binary, read, takes, tensor
from vitesse.serve.limits import MIB, Limits
from vitesse.serve.protocol import Signature, inflate
from vitesse.serve.refusals import Refusal

SIZE = tensor([5, 6], name="size", shape=[1, 2], datatype="INT64")
GOOD = in_binary(
    SIZE, binary_tensor(), id="a", outputs=[{"name": "scores"}], parameters={"timeout": 5}, tail=bytes(16)
)
INTERESTING = [
    b"",
    b"-",
    b"9" * 30,
    b'"',
    b"\\",
    b"[",
    b"{",
    b"NaN",
    b"null",
    b"1e999",
    b"\\ud800",
    b"\0",
    b"\xff",
]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, -1, 0, 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["x", "FP32", "BYTES", "scores", "name", "data"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def answered_or_refused(body: bytes, header_length: str | None, signature: Signature) -> bool:
    """Return whether it was read; anything but a refusal in plain words propagates."""
    try:
        request = read(body, header_length, signature)
    except Refusal as refusal:
        assert refusal.status in (400, 413) and refusal.text.isascii() and len(refusal.text) < 1000
        json.dumps(refusal.document())
        return False
    for info in signature.inputs:
        assert request.inputs[info.name].dtype.name == info.dtype
        assert 1 <= request.inputs[info.name].shape[0] <= signature.max_batch
    return True


def test_the_unchanged_body_is_good() -> None:
    assert answered_or_refused(*GOOD, TWO_INPUTS)


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(GOOD[0])),
            st.integers(0, 8),
            st.sampled_from(INTERESTING) | st.binary(max_size=4),
        ),
        min_size=1,
        max_size=4,
    ),
    length=st.sampled_from([GOOD[1], None, "0", "5"]) | st.integers(-2, 400).map(str) | st.text(max_size=3),
    signature=st.sampled_from([TWO_INPUTS, SIGNATURE, takes("object", "N", "K"), takes("bool", "N", 2, "W")]),
)
def test_bytes_changed_anywhere_are_read_or_refused(
    edits: list[tuple[int, int, bytes]], length: str | None, signature: Signature
) -> None:
    body = GOOD[0]
    for start, cut, new in edits:
        body = body[:start] + new + body[start + cut :]
    answered_or_refused(body, length, signature)


def paths_of(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in paths_of(inner, (*path, key)))]


HEADER: dict[str, Any] = json.loads(GOOD[0][: int(GOOD[1])])


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(paths_of(HEADER)), value=JSON_VALUES)
@example(place=("inputs", 0, "shape"), value=[2**62, 2**62])
@example(place=("inputs", 1, "parameters", "binary_data_size"), value=2**64)
def test_a_value_put_anywhere_in_the_header_is_read_or_refused(place: tuple[Any, ...], value: object) -> None:
    document = json.loads(json.dumps({"root": HEADER}))
    holder = document
    for key in ("root", *place)[:-1]:
        holder = holder[key]
    holder[("root", *place)[-1]] = value
    header = json.dumps(document["root"]).encode()
    answered_or_refused(header + bytes(16), str(len(header)), TWO_INPUTS)


@settings(deadline=None)
@given(st.binary(max_size=64) | st.integers(0, 200).map(lambda cut: gzip.compress(GOOD[0])[:cut]))
def test_a_compressed_body_changed_anywhere_is_inflated_or_refused(body: bytes) -> None:
    for encoding in ("gzip", "deflate"):
        try:
            inflate(body, encoding, Limits(inflated_bytes=MIB))
        except Refusal as refusal:
            assert refusal.status in (400, 413)


def test_the_harness_lets_another_error_through() -> None:
    broken = Signature("m", "1", "p", SIGNATURE.inputs, (), max_batch="4")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        answered_or_refused(json.dumps({"inputs": [tensor()]}).encode(), None, broken)
    assert np.isfinite(read(*GOOD, TWO_INPUTS).inputs["x"]).all()
