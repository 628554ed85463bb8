"""A server in this process for tests: a small trained model, a real pool, a socket on a free port."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from prometheus_client import CollectorRegistry

from fashion import FOLDER, VIT
from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault
from vitesse.backends.protocol import LoadOptions
from vitesse.ledger import ArtifactRef, Ledger, Row, Verdict
from vitesse.metadata import read_spec
from vitesse.serve.app import build_app
from vitesse.serve.execution import Threads
from vitesse.serve.limits import Limits
from vitesse.serve.metrics import Metrics
from vitesse.serve.pool import Pool
from vitesse.serve.protocol import Signature
from vitesse.serve.server import Server, listen
from vitesse.serve.service import Service
from vitesse.serve.shutdown import Shutdown
from vitesse.serve.tally import Tally
from vitesse.serve.work import Executed, Work

NAME = "vit_fashion"
PICTURES = sorted((FOLDER / "vit" / "val").glob("*/*.png"))
# Short enough for tests that wait for a bound, long enough for a loaded machine.
QUICK = Limits(header_s=0.6, body_s=0.6, keep_alive_s=2.0, drain_s=0.3, stop_s=10.0, queue_s=20.0)


def artifact(path: Path = VIT) -> Artifact:
    """Wrap a file of the examples."""
    spec = read_spec(onnx.load(path))
    assert spec is not None
    return Artifact(
        path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, spec, Provenance("source")
    )


def make_run(folder: Path, path: Path = VIT, stages: tuple[str, ...] = ("source", "fuse")) -> Path:
    """Write a finished run whose artifacts are the same graph in files of their own; the second one is chosen."""
    (folder / "artifacts").mkdir(parents=True)
    known = artifact(path)
    rows = []
    for stage in stages:
        model = onnx.load(path)
        model.doc_string = stage  # two files, or the run would have chosen the original
        kept = folder / "artifacts" / f"{stage}.onnx"
        onnx.save(model, kept)
        content = kept.read_bytes()
        ref = ArtifactRef(f"artifacts/{kept.name}", hashlib.sha256(content).hexdigest(), len(content))
        rows.append(
            Row(stage, Verdict.PASS, "tested elsewhere", artifact=ref, run_options={"threads": 1, "plain": 0})
        )
    Ledger(str(path), "cpu", tuple(rows), chosen=1).save(folder / "ledger.json")
    identity = {"source_sha256": known.sha256, "data_sha256": "0", "spec": json.loads(known.spec.to_json())}
    (folder / "run.json").write_text(json.dumps(identity))
    return folder


@dataclass
class Answered:
    """As the router's answer."""

    executed: Executed
    served_by: str = "live"


class Straight:
    """A router with one way."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit(self, work: Work, feeds_of: Any = None) -> Future[Answered]:
        """Hand the work to the pool."""
        answer: Future[Answered] = Future()

        def done(future: Future[Executed]) -> None:
            if future.cancelled():
                answer.cancel()
            elif not answer.set_running_or_notify_cancel():
                return
            elif future.exception() is not None:
                answer.set_exception(future.exception())
            else:
                answer.set_result(Answered(future.result()))

        work.done.add_done_callback(done)
        self.pool.submit(work)
        return answer


@contextmanager
def service_of(
    path: Path = VIT,
    *,
    limits: Limits = QUICK,
    fault: Fault | None = None,
    max_items: int = 4,
    workers: int = 1,
    max_wait_s: float = 0.0,
    capacity: int = 0,
    hang_s: float = 10.0,
    ready: bool = True,
    **more: Any,
) -> Iterator[Service]:
    """Open a service of one model without releases, around a runtime with a fault where one is given."""
    known = artifact(path)
    engine = FakeBackend(backend("onnxruntime"), fault).load(known, LoadOptions(threads=1))
    metrics = Metrics(CollectorRegistry(), NAME, "1", "onnxruntime", strict=True)
    signature = Signature(NAME, "1", "onnxruntime_onnx", engine.inputs, engine.outputs, max_items)
    pool = Pool(
        engine, workers=workers, max_items=max_items, max_wait_s=max_wait_s, capacity=capacity, hang_s=hang_s,
        observer=metrics,
    )  # fmt: skip
    threads = Threads(2)
    made = Service(
        signature, known.spec, Straight(pool), metrics, threads, lambda: {"schema": 1}, Tally(), limits,
        workers=workers, why_dead=lambda: pool.broken, **more,
    )  # fmt: skip
    if ready:
        made.readiness.become("ready")
    try:
        yield made
    finally:
        threads.close()
        pool.close(0.5)


@dataclass
class Answer:
    """What came back: status, headers in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Live:
    """A running server."""

    port: int
    service: Service
    server: Server
    shutdown: Shutdown

    @property
    def url(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send one request on a connection of its own; underscores in header names stand for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            came = connection.getresponse()
            return Answer(
                came.status, {name.lower(): value for name, value in came.getheaders()}, came.read()
            )
        finally:
            connection.close()

    def raw(self, data: bytes, *, wait_s: float = 10.0, half_close: bool = False) -> bytes:
        """Send bytes and return all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Return everything until the other side closes, or is silent for the socket's timeout."""
    got = b""
    while True:
        try:
            part = connection.recv(65536)
        except (TimeoutError, ConnectionResetError):
            return got
        if not part:
            return got
        got += part


@contextmanager
def running(service: Service) -> Iterator[Live]:
    """Serve on a free port of this machine, in a thread."""
    shutdown = Shutdown(service.limits.drain_s, service.limits.stop_s)
    server = Server(build_app(service), service.limits, shutdown, service.leave)
    socket_ = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([socket_],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Live(socket_.getsockname()[1], service, server, shutdown)
    finally:
        shutdown.signal()
        shutdown.signal()
        thread.join(20)
        assert not thread.is_alive()


def until(condition: Any, limit_s: float = 30.0) -> None:
    """Wait for a condition; fail the test when it never comes."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def tensor(count: int = 1, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return inputs as the model takes them."""
    size = artifact().spec.preprocessing.size
    return np.random.default_rng(seed).normal(size=(count, 3, *size)).astype(np.float32)


def infer_body(array: Any = None, **changes: Any) -> bytes:
    """Return a JSON request of v2; `changes` replace what its input says."""
    array = tensor() if array is None else array
    entry = {
        "name": "images",
        "datatype": "FP32",
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
        **changes,
    }
    return json.dumps(
        {"inputs": [{name: value for name, value in entry.items() if value is not None}]}
    ).encode()


def binary_body(array: Any = None, size: int | None = None, **changes: Any) -> tuple[bytes, str]:
    """Return a binary request of v2 and the length of its JSON."""
    array = tensor() if array is None else array
    data = array.tobytes()
    entry = {"name": "images", "datatype": "FP32", "shape": list(array.shape),
             "parameters": {"binary_data_size": len(data) if size is None else size}, **changes}  # fmt: skip
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return header + data, str(len(header))


def with_limits(**changes: Any) -> Limits:
    """Return QUICK with some limits changed."""
    return replace(QUICK, **changes)
