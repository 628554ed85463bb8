"""Bad requests that a server must outlive, by their number in the catalogue of 86: how each is made, what must come back.

A case is a function from a running server to what came; `status` and `text` are judged by the test, which then
sends a good request. Beside them: catalogue_pictures, catalogue_faults, and catalogue_references for what is elsewhere.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serve.serving import NAME, Answer, Live, binary_body, infer_body, read_all, tensor
from vitesse.serve.limits import MIB

INFER = f"/v2/models/{NAME}/infer"


@dataclass(frozen=True)
class Case:
    """One request and its answer; `text` is part of the error's sentence."""

    number: int
    what: str
    send: Callable[[Live], Answer]
    status: tuple[int, ...]
    text: str = ""


def post(body: bytes, path: str = INFER, **headers: str) -> Callable[[Live], Answer]:
    """Send one POST."""
    return lambda live: live.ask("POST", path, body, **headers)


def binary(
    size: int | None = None, length: str | None = None, array: object = None, **changes: object
) -> Callable[[Live], Answer]:
    """Send a binary request, with another size or header length than the right one."""
    body, right = binary_body(array, size, **changes)
    return post(body, Inference_Header_Content_Length=right if length is None else length)


def get(path: str) -> Callable[[Live], Answer]:
    """Send one GET."""
    return lambda live: live.ask("GET", path)


def raw(data: bytes, half_close: bool = False) -> Callable[[Live], Answer]:
    """Send bytes that are not made by a client library."""
    return lambda live: parsed(live.raw(data, half_close=half_close))


def parsed(answer: bytes) -> Answer:
    """Read the first answer of a raw connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/1.1") else 0
    return Answer(status, headers, body[: int(headers.get("content-length", len(body)))])


def doc(inputs: object, **more: object) -> Callable[[Live], Answer]:
    """Send a JSON request with these inputs."""
    return post(json.dumps({"inputs": inputs, **more}).encode())


def entry(**changes: object) -> dict[str, object]:
    """Return a small input that is right but for the changes."""
    return {"name": "images", "datatype": "FP32", "shape": [1, 3, 56, 56], "data": [0.0] * 9408, **changes}


def slow_body(live: Live) -> Answer:
    """Announce a body, send a part and stop."""
    return parsed(live.raw(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode()))


def too_large_chunked(live: Live) -> Answer:
    """Send chunks without an end until the server says no."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        part = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
        try:
            for _ in range(live.service.limits.body_bytes // MIB + 2):
                connection.sendall(part)
        except OSError:
            pass
        return parsed(read_all(connection))


def tiny_chunks(live: Live) -> Answer:
    """Send a good request in chunks of one byte, 100 000 of them and more."""
    body = infer_body()
    body += b" " * max(0, 100_000 - len(body))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return parsed(live.raw(head.encode() + chunks))


def zeros_gzipped(live: Live) -> Answer:
    """Send a bomb: 100 KB that inflate beyond the limit."""
    bomb = gzip.compress(bytes(live.service.limits.inflated_bytes + MIB))
    return live.ask("POST", INFER, bomb, Content_Encoding="gzip")


def killed_clients(live: Live) -> Answer:
    """Reset connections in the middle of their requests, then ask for health."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{{".encode())
    time.sleep(0.05)
    return live.ask("GET", "/v2/health/live")


def nan() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return inputs with one NaN."""
    array = tensor()
    array.flat[5] = np.nan
    return array


HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n"
# One line a case, however long.
# ruff: noqa: E501
CASES: tuple[Case, ...] = (
    Case(1, "empty body", post(b""), (400,), "the request body is empty"),
    Case(2, "not JSON", post(b"<html>"), (400,), "failed to parse the request JSON"),
    Case(3, "negative header length", binary(length="-1"), (400,), "invalid Inference-Header-Content-Length"),
    Case(3, "header length beyond the body", binary(length="99999999"), (400,), "invalid Inference-Header"),
    Case(3, "header length no number", binary(length="ten"), (400,), "invalid Inference-Header"),
    Case(3, "header length 2^63", binary(length=str(2**63)), (400,), "invalid Inference-Header"),
    Case(4, "binary sizes do not add up", binary(size=40), (400,), "Expected 37632, got 40"),
    Case(5, "missing input", doc([]), (400,), 'expected a list of one or more inputs'),
    Case(6, "unknown input", doc([entry(), entry(name="x")]), (400,), "unexpected inference input 'x'"),
    Case(7, "duplicate input", doc([entry(), entry()]), (400,), "already exists in request"),
    Case(7, "duplicate output", doc([entry()], outputs=[{"name": "logits"}] * 2), (400,), "already exists"),
    Case(8, "wrong datatype", doc([entry(datatype="INT8")]), (400,), "Expected 'FP32'"),
    Case(9, "wrong rank", doc([entry(shape=[3, 56, 56])]), (400,), "Expected [-1,3,56,56]"),
    Case(9, "wrong fixed dimension", doc([entry(shape=[1, 1, 56, 168])]), (400,), "Expected [-1,3,56,56]"),
    Case(11, "batch 0", doc([entry(shape=[0, 3, 56, 56], data=[])]), (400,), "batch size"),
    Case(12, "batch too large", binary(array=tensor(5)), (400,), "batch-size must be <= 4"),
    Case(13, "negative dimension", doc([entry(shape=[-1, 3, 56, 56])]), (400,), "dimension"),
    Case(13, "overflowing product", doc([entry(shape=[2**60 + 2, 2**4, 56, 56])]), (400,), "batch-size"),
    Case(14, "1 GB in the shape, 10 bytes sent", binary(array=tensor(), size=10, shape=[30000, 3, 56, 56]), (400,)),
    Case(15, "NaN", binary(array=nan()), (400,), "NaN"),
    Case(16, "JSON 200 000 deep", post(b"[" * 200_000 + b"]" * 200_000), (400,), "nesting depth exceeds"),
    Case(17, "the literal NaN", post(b'{"inputs": NaN}'), (400,), "NaN is not a JSON value"),
    Case(18, "unknown model", post(infer_body(), "/v2/models/nobody/infer"), (404,), f"this server has '{NAME}'"),
    Case(19, "unknown version", get(f"/v2/models/{NAME}/versions/9"), (404,), "this server has '1'"),
    Case(20, "../ as it is", raw(b"GET /v2/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), (404,)),
    Case(20, "../ in percent signs", get("/v2/models/%2e%2e%2fetc%2fpasswd"), (400, 404)),
    Case(20, "NUL", get("/v2/models/a%00b"), (400, 404)),
    Case(20, "300 characters", get(f"/v2/models/{'m' * 300}"), (400, 404), "1 to 128"),
    Case(21, "wrong method", get(INFER), (405,), "it takes POST"),
    Case(22, "unknown path", get("/v3"), (404,), "nothing at this address"),
    Case(23, "too large by Content-Length", raw(HEAD.encode() + b"Content-Length: 99999999999\r\n\r\n"), (413,), "Content-Length says"),
    Case(23, "too large in chunks", too_large_chunked, (413,), "the body is too large"),
    Case(24, "gzip bomb", zeros_gzipped, (413,), "inflates to more than"),
    Case(25, "unknown encoding", post(infer_body(), Content_Encoding="br"), (415,), "unsupported Content-Encoding"),
    Case(25, "encoded image", post(b"x", "/v1/classify", Content_Encoding="gzip"), (415,), "send the image file as it is"),
    Case(26, "headers of 100 KB", raw(HEAD.encode() + b"X: " + b"y" * 100_000 + b"\r\n\r\n"), (431,), "larger than 65536"),
    Case(26, "many headers", raw(HEAD.encode() + b"X: y\r\n" * 20_000), (431,), "larger than 65536"),
    Case(27, "slow headers", raw(HEAD.encode()), (408,), "no whole header block within"),
    Case(27, "slow body", slow_body, (408,), "the body did not come within"),
    Case(29, "garbage", raw(b"\x00\xff\x17garbage\r\n\r\n"), (400,), "not an HTTP/1.1 request"),
    Case(29, "HTTP/0.9", raw(b"GET /\r\n\r\n"), (400,), "not an HTTP/1.1 request"),
    Case(29, "bad chunk size", raw(HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), (400,)),
    Case(29, "garbage behind a request", raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\x00\x01garbage\r\n\r\n"), (200, 400)),
    Case(30, "100 000 chunks of a byte", tiny_chunks, (200,)),
    Case(64, "clients killed in the middle", killed_clients, (200,)),
    Case(85, "admin routes while there is no admin key", post(b"", "/api/release/promote"), (404,)),
)  # fmt: skip
