"""What a soak sends, what it expects, and the client that compares."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.backends import backend
from vitesse.backends.closing import Closing
from vitesse.run import Run, load_options
from vitesse.serve.answers import classification, detection, results_of
from vitesse.serve.images import feeds_of, picture_of
from vitesse.serve.limits import Limits
from vitesse.serve.served import model_name
from vitesse.spec import Resize, Task

IMAGES = 6
# Largest absolute difference of an output, or of a score or share of the image in what /v1 answers.
TOLERANCE = 1e-3
# Of all requests; JSON of a whole tensor is slow to send and to read, and rare.
_WEIGHTS = {"JPEG": 0.5, "binary": 0.48, "JSON": 0.02}

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """One request: the whole HTTP message, and the numbers that a right answer holds."""

    kind: str
    image: int
    message: bytes
    expected: Values
    weight: float


@dataclass(frozen=True)
class Verdict:
    """One answer: its status, how far it is from what was expected, and whether it is that of another image."""

    status: int
    distance: float = 0.0
    swapped: bool = False
    served_by: str = ""
    ended: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether an accepted request was answered wrongly."""
        return self.status == 200 and not self.distance <= TOLERANCE


def cases_of(run: Run) -> list[Case]:
    """Return every image in every form, with the outputs of a bare session on the run's file.

    Raises:
        ValueError: two images have answers that could be taken for each other's.
    """
    spec, limits = run.artifact.spec, Limits()
    detects = spec.task is Task.DETECTION
    route = "/v1/detect?threshold=0" if detects else "/v1/classify?top=100"
    cases: list[Case] = []
    with (
        backend(run.artifact.backend).load(
            run.artifact, replace(load_options(run.ledger.chosen_row()), threads=1)
        ) as engine,
        engine.session() as session,
    ):
        name = f"/v2/models/{model_name(run.ledger.source)}/infer"
        for number in range(IMAGES):
            jpeg = picture(number, *pixels(spec))
            feeds = feeds_of([picture_of(jpeg, limits).image], spec)
            outputs = {key: array.copy() for key, array in session.run(feeds).outputs.items()}
            shown = picture_of(jpeg, limits)
            result = results_of(outputs, spec, [shown])[0]
            document = (
                detection(result, shown.size, threshold=0.0) if detects else classification(result, 100)
            )
            raw = np.concatenate([outputs[key].ravel() for key in sorted(outputs)]).astype(np.float64)
            body, length = binary(feeds)
            cases += [
                _case("JPEG", number, post(route, jpeg), numbers(document)),
                _case("binary", number, post(name, body, {"Inference-Header-Content-Length": length}), raw),
                _case("JSON", number, post(name, in_json(feeds)), raw),
            ]
    check_distinct(cases)
    return cases


def check_distinct(cases: Sequence[Case]) -> None:
    """Raise ValueError where a wrong pairing could not be seen."""
    for one in cases:
        for other in cases:
            alike = distance(one.expected, other.expected) <= 10 * TOLERANCE
            if alike and one.kind == other.kind and one.image < other.image:
                raise ValueError(f"images {one.image} and {other.image} have the same answer as {one.kind}")


def judge(case: Case, cases: Sequence[Case], found: Values) -> tuple[float, bool]:
    """Return how far an answer is from what was expected, and whether it is another image's."""
    off = distance(found, case.expected)
    if off <= TOLERANCE:
        return off, False
    others = (other for other in cases if other.kind == case.kind and other.image != case.image)
    return off, any(distance(found, other.expected) <= TOLERANCE for other in others)


def distance(found: Values, expected: Values) -> float:
    """Return the largest absolute difference; infinite for another number of values or NaN."""
    if found.shape != expected.shape:
        return float("inf")
    worst = float(np.abs(found - expected).max(initial=0.0))
    return worst if np.isfinite(worst) else float("inf")


def numbers(document: Mapping[str, Any]) -> Values:
    """Return what `/v1` answered as numbers: class by class the score, and box as shares of the image's sides.

    Sorted by class and score, because candidates of nearly equal scores may change places.
    """
    if "classes" in document:
        rows = [[row["class"], row["score"]] for row in document["classes"]]
    else:
        width, height = document["image"]["width"], document["image"]["height"]
        sides = (width, height, width, height)
        rows = [
            [
                row["class"],
                row["score"],
                *(at / side for at, side in zip(row["box_xyxy"], sides, strict=True)),
            ]
            for row in document["detections"]
        ]
    return np.array(sorted(rows), np.float64).ravel()


class Client(Closing):
    """One connection that is kept open, and made anew where it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = _connected(port)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def ask(self, case: Case, cases: Sequence[Case]) -> Verdict:
        """Send a case and judge the answer; raises OSError where the connection breaks."""
        try:
            self._socket.sendall(case.message)
            status, headers, body = self._answer()
        except OSError:
            self._socket.close()
            self._socket = _connected(self._port)
            raise
        ended = time.monotonic()
        if status != 200:
            return Verdict(status, ended=ended)
        off, swapped = judge(case, cases, values_of(headers, body))
        return Verdict(status, off, swapped, headers.get("x-served-by", ""), ended)

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._received()
        head, _, body = got.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        parts, left = [body], int(headers["content-length"]) - len(body)
        while left > 0:
            parts.append(self._received())
            left -= len(parts[-1])
        return int(first.split()[1]), headers, b"".join(parts)

    def _received(self) -> bytes:
        part = self._socket.recv(1 << 18)
        if not part:
            raise ConnectionResetError("the server closed the connection within an answer")
        return part


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def values_of(headers: Mapping[str, str], body: bytes) -> Values:
    """Return the numbers of an answer, outputs by name in the order of the alphabet."""
    length = headers.get("inference-header-content-length")
    document = json.loads(body if length is None else body[: int(length)])
    if "outputs" not in document:
        return numbers(document)
    outputs: dict[str, Values] = {}
    at = 0 if length is None else int(length)
    for output in document["outputs"]:
        if "data" in output:
            outputs[output["name"]] = np.array(output["data"], np.float64)
            continue
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = np.frombuffer(body[at : at + size], np.float32).astype(np.float64)
        at += size
    return np.concatenate([outputs[name] for name in sorted(outputs)])


def pixels(spec: Any) -> tuple[int, int]:
    """Return (width, height) of the images: the model's own where it does not resize."""
    height, width = spec.preprocessing.size
    return (width, height) if spec.preprocessing.resize is Resize.NONE else (2 * width, 2 * height)


def picture(number: int, width: int, height: int) -> bytes:
    """Return a JPEG of smoothed noise."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (4 + number, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def binary(feeds: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a v2 request with binary tensors, and the length of its JSON."""
    entries = [
        {**entry(name, array), "parameters": {"binary_data_size": array.nbytes}}
        for name, array in feeds.items()
    ]
    header = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    return header + b"".join(array.tobytes() for array in feeds.values()), str(len(header))


def in_json(feeds: Mapping[str, Any]) -> bytes:
    """Return a v2 request in JSON alone."""
    entries = [{**entry(name, array), "data": array.ravel().tolist()} for name, array in feeds.items()]
    return json.dumps({"inputs": entries}).encode()


def entry(name: str, array: Any) -> dict[str, Any]:
    datatype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
    return {"name": name, "datatype": datatype, "shape": list(array.shape)}


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole HTTP/1.1 message."""
    lines = [f"POST {path} HTTP/1.1", "Host: soak", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _case(kind: str, image: int, message: bytes, expected: Values) -> Case:
    return Case(kind, image, message, expected, _WEIGHTS[kind] / IMAGES)
