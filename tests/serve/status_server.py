"""A server of canned answers for the dashboard's tests: the page with its headers, a status, a detection."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

import prometheus_client

from vitesse.serve.limits import Limits
from vitesse.serve.metrics import Load, Metrics
from vitesse.serve.pages import content_policy
from vitesse.serve.release_watch import ReleaseWatch
from vitesse.serve.sampling import Sample
from vitesse.serve.status import Status
from vitesse.serve.windows import Windows

PAGE = resources.files("vitesse.serve").joinpath("dashboard.html").read_bytes()
FACTS = {
    "name": "detr_fashion", "task": "detection", "labels": 10, "input_size": [224, 224], "stage": "fuse",
    "verdict": "PASS", "target": "cpu", "backend": "onnxruntime", "artifact": "artifacts/fuse-dc9bd489b28a.onnx",
    "sha256": "dc9bd489b28a" + 52 * "0", "bytes": 4954179, "gain": 1.82,
    "accuracy": {"metric": "coco_ap", "value": 0.612, "drop": 0.1, "images": 40, "details": {}},
}  # fmt: skip


class Clock:
    """Time that a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Scene:
    """A status with a fake clock, and the means to let things happen in it."""

    def __init__(self, *, load=Load(3, 32, 2, 2), state=None, ready=(True, "")) -> None:  # noqa: B008
        self.clock, self.load, self.ready = Clock(), load, ready
        self.state = state or released()
        self.windows = Windows(self.clock)
        registry = prometheus_client.CollectorRegistry()
        self.metrics = Metrics(
            registry, "detr_fashion", "fuse", "onnxruntime", windows=self.windows, strict=True
        )
        self.watch = ReleaseWatch(self.metrics)
        self.status = Status(
            facts=FACTS, limits=Limits(), metrics=self.metrics, windows=self.windows, watch=self.watch,
            load=lambda: self.load, releases=lambda: self.state, ready=lambda: self.ready,
            clock=self.clock, wall=lambda: self.clock.now + 1_790_000_000.0,
        )  # fmt: skip

    def second(self, requests=40, latency_s=0.02, code=200, batch=4, **values) -> None:
        """Let a second with these requests pass, and sample it."""
        for at in range(requests):
            self.metrics.observe_request(code, latency_s * (1 + at / max(requests, 1)), 100_000)
        for _ in range(requests // batch):
            self.metrics.batch_executed(batch, batch, [0.001] * batch, latency_s / 2, None)
        self.status.sampled(Sample(self.clock.now, {"cpu_percent": 162.0, "memory_mb": 212.4, **values}))
        self.clock.now += 1


def released(broken: str = "") -> dict:
    """What the router tells: a live release, whose breaker is open where `broken` says why, and a canary."""
    live, event = "fuse-dc9bd489b28a", {"at": 1_790_000_000.0, "release": "fuse-dc9bd489b28a"}
    breaker = {
        "state": "open" if broken else "closed",
        "kind": "nonfinite" if broken else None,
        "why": broken,
    }
    return {
        "serving": "reference" if broken else live, "reference": "reference", "live": live, "canary": None,
        "releases": [
            {"name": live, "sha256": "dc9b", "phase": "live", "share": 0.0, "shadow": False},
            {"name": "int8-0a1b2c3d4e5f", "sha256": "0a1b", "phase": "canary", "share": 0.1, "shadow": True},
        ],
        "breakers": {live: breaker},
        "events": [
            {**event, "what": "promoted", "why": "it is the run's choice"},
            *([{**event, "at": event["at"] + 60, "what": "breaker opened", "why": broken}] if broken else []),
        ],
    }  # fmt: skip


@contextmanager
def serving(status, answer=None, *, key=None, page=None, files=None):
    """Serve the dashboard.

    status: returns the document, or None for a status of 500. answer: (status, document) of a POST. key: asked for.
    page: instead of the page. files: path → (media type, content), of the same origin; "/framed" is the page in a
    policy that lets this origin frame it, because a window of headless Chromium is never narrower than 500 pixels.

    Yields the address and the list of POSTed (path, body).
    """
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/":
                self._send(200, page or PAGE, self._headers("'none'"))
            elif self.path == "/framed/":
                self._send(200, page or PAGE, self._headers("'self'"))
            elif self.path in (files or {}):
                kind, content = files[self.path]
                self._send(200, content, {"Content-Type": kind})
            elif self._asked("/api/status") and key and self.headers.get("Authorization") != f"Bearer {key}":
                self._send(401, b'{"error": "no key", "code": "unauthorized"}')
            elif self._asked("/api/status"):
                document = status()
                self._send(500 if document is None else 200, json.dumps(document).encode())
            else:
                self._send(404, b"{}")

        def do_POST(self):
            posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            code, document = answer
            self._send(code, json.dumps(document).encode())

        def _headers(self, ancestors):
            policy = content_policy(PAGE).replace("frame-ancestors 'none'", f"frame-ancestors {ancestors}")
            return {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}

        def _asked(self, path):
            return self.path.removeprefix("/framed") == path

        def _send(self, code, body, headers=None):
            self.send_response(code)
            for name, value in (headers or {"Content-Type": "application/json"}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", posted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
