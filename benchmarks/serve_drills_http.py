"""Rollback drills over HTTP: a server in a process of its own, clients that keep asking, a fault from one moment on.

    python benchmarks/serve_drills_http.py RUN [--clients 4]

RUN is a finished run of the example's detector, whose state as a server is forgotten first. Results go to
benchmarks/results/serve_drills_http.json and into the table of docs/serving.md. The server is serve_drill_server.py:
`vitesse serve` with its own thresholds, and sessions of the release that misbehave on command. Clients send validation
images one after the other. Lost is a request without an answer or with another status than 200; wrong, an answer that
does not agree with what the same one, release or reference, answered before the fault: what shows only by comparison is
found after some such answers. Between drills the release is promoted again by the admin route.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ledgers import ROOT, environment_text, with_section
from serve_drill_server import FAULT, SLOW, TIMES

from vitesse.data.results import Detections
from vitesse.environment import describe
from vitesse.serve.releases.agreement import agreement
from vitesse.serve.releases.state import FILE, StateFile

RESULTS = ROOT / "benchmarks" / "results" / "serve_drills_http.json"
PAGE = ROOT / "docs" / "serving.md"
IMAGES = ROOT / "examples/fashion/detr"
# A slow release is judged by 20 runs of the reference, which sees one request in fifty.
HEALTHY = 1500
TITLES = {
    "exceptions": "every run raises",
    "NaN": "one NaN in every output",
    SLOW: f"{TIMES} times as slow",
    "boxes": "boxes a tenth of their width off",
}
SERVER = Path(__file__).with_name("serve_drill_server.py")
KEY = "a-key-of-the-drills-alone"

# Who answers, as X-Served-By names it → what for each picture.
Expected = Mapping[str, Sequence[Detections]]


@dataclass(frozen=True)
class Answer:
    """What one request got: seconds since 1970 of sending and of the answer, and who gave it ("" for none)."""

    sent: float
    came: float
    status: int
    served_by: str
    right: bool


@dataclass(frozen=True)
class Drill:
    """What came of one: seconds and requests with the fault until traffic was back, and what became of all requests."""

    fault: str
    kind: str
    why: str
    seconds: float
    requests: int
    by_the_reference: int
    wrong: int
    sent: int
    lost: int
    p50_ms: float


class Clients:
    """Ask without a pause until they are stopped; every answer is kept."""

    def __init__(self, port: int, pictures: Sequence[bytes], expected: Expected, count: int) -> None:
        self.answers: list[Answer] = []
        self._port, self._pictures, self._expected, self._ending = port, pictures, expected, False
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for thread in self._threads:
            thread.join()

    def _ask(self, at: int) -> None:
        with closing(connected(self._port)) as connection:
            while not self._ending:
                at = (at + 1) % len(self._pictures)
                sent, status, served_by, right = time.time(), 0, "", False
                try:
                    status, served_by, body = asked(connection, self._pictures[at])
                    expected = self._expected.get(served_by)
                    right = bool(
                        status == 200 and expected and agreement([detections(body)], [expected[at]]) > 0.95
                    )
                except (OSError, http.client.HTTPException):
                    connection.close()  # the next request opens it again
                self.answers.append(Answer(sent, time.time(), status, served_by, right))


def both_answers(drilled: Drilled, pictures: Sequence[bytes]) -> Expected:
    """Let the release and the reference answer every picture once; the release serves again afterwards."""
    found: dict[str, list[Detections]] = {}
    changes = {"rollback": {"why": "to see the reference's answers"}, "promote": {"release": drilled.live}}
    with closing(connected(drilled.port)) as connection:
        for change, body in changes.items():
            status, said = drilled.ask("POST", f"/api/release/{change}", body)
            assert status == 200, said
            for picture in pictures:
                _, served_by, body = asked(connection, picture)
                found.setdefault(served_by, []).append(detections(body))
    assert [len(one) for one in found.values()] == 2 * [len(pictures)], f"answers came from {list(found)}"
    return found


def connected(port: int) -> http.client.HTTPConnection:
    """A connection to a server of this machine; it is opened by its first request."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def asked(connection: http.client.HTTPConnection, picture: bytes) -> tuple[int, str, bytes]:
    """Ask for a picture's detections: status, who answered, and the answer."""
    connection.request("POST", "/v1/detect?threshold=0.05", picture)
    came = connection.getresponse()
    return came.status, came.headers.get("X-Served-By", ""), came.read()


def detections(body: bytes) -> Detections:
    """Read an answer of /v1/detect."""
    found = json.loads(body)["detections"]
    boxes = np.array([one["box_xyxy"] for one in found], np.float32).reshape(-1, 4)
    scores = np.array([one["score"] for one in found], np.float32)
    return Detections(boxes, scores, np.array([one["class"] for one in found], np.int64), ())


@dataclass(frozen=True)
class Drilled:
    """A server with a fault file, and the run that it serves."""

    port: int
    run: Path
    file: Path

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Ask a route that takes and answers JSON, with the admin key."""
        content = None if body is None else json.dumps(body)
        with closing(connected(self.port)) as connection:
            connection.request(method, path, content, {"Authorization": f"Bearer {KEY}"})
            came = connection.getresponse()
            return came.status, json.loads(came.read())

    @property
    def live(self) -> str:
        """The release that is drilled."""
        state = StateFile(self.run).read()
        assert state is not None and state.live is not None, (
            "the run has to have chosen another than the original"
        )
        return state.live.name

    def rollback(self) -> tuple[float, str, str] | None:
        """When the release was rolled back, as what, and why; None while it was not."""
        state = StateFile(self.run).read()
        if state is None or self.live not in state.breakers:
            return None
        event = next(one for one in reversed(state.events) if one.what == "rolled back")
        return event.at, state.breakers[self.live].kind, event.why


@contextmanager
def server(run: Path, *options: str) -> Iterator[Drilled]:
    """Start the server of the drills with its options, and wait until it is ready."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "fault"
        file.write_text("")
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(run), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {FAULT: str(file), "VITESSE_ADMIN_KEYS": KEY},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://" in line, f"the server of the drills did not start: {line!r}"
            started = Drilled(int(line.rsplit(":", 1)[1].strip(" /\n")), run, file)
            wait(lambda: started.ask("GET", "/readyz")[0] == 200, "the server is ready")
            yield started
        finally:
            process.terminate()
            process.communicate()


def wait(so: Callable[[], Any], what: str, limit_s: float = 120.0) -> Any:
    """Wait until something holds, and return it."""
    end = time.monotonic() + limit_s
    while not (found := so()):
        if time.monotonic() > end:
            raise SystemExit(f"waited {limit_s:g} s in vain until {what}")
        time.sleep(0.02)
    return found


def drill(
    drilled: Drilled, fault: str, pictures: Mapping[str, bytes], *, clients: int, healthy: int
) -> Drill:
    """Let clients ask `healthy` times, then have the fault until the release is rolled back, and for 50 requests more.

    Ends the command where the release is not live, is rolled back before the fault, or not within two minutes after it.
    """
    assert drilled.rollback() is None, "the release was rolled back before the drill began"
    release, images = drilled.live, list(pictures.values())
    with Clients(drilled.port, images, both_answers(drilled, images), clients) as asking:
        wait(lambda: len(asking.answers) >= healthy, f"{healthy} requests are answered")
        if (before := drilled.rollback()) is not None:
            raise SystemExit(f"rolled back without a fault: {before}")
        drilled.file.write_text(fault)
        began = time.time()
        at, kind, why = wait(drilled.rollback, f"{fault}: the release is rolled back")
        seen = len(asking.answers)
        wait(lambda: len(asking.answers) >= seen + 50, "the reference has answered 50 requests")
    drilled.file.write_text("")
    status, said = drilled.ask("POST", "/api/release/promote")
    assert (status, said["serving"]) == (200, release), said
    faulty = [one for one in asking.answers if one.came >= began and one.sent <= at]
    return Drill(
        fault,
        kind,
        why,
        round(at - began, 3),
        len(faulty),
        sum(one.served_by == "reference" for one in faulty),
        sum(one.status == 200 and not one.right for one in asking.answers),
        len(asking.answers),
        sum(one.status != 200 for one in asking.answers),
        round(1e3 * statistics.median(one.came - one.sent for one in asking.answers if one.sent < began), 2),
    )


def pictures_of(count: int) -> dict[str, bytes]:
    """Validation images by name."""
    return {path.name: path.read_bytes() for path in sorted((IMAGES / "val").glob("*.jpg"))[:count]}


def table(found: Mapping[str, Any]) -> str:
    """Return the drills as a Markdown table."""
    lines = [
        "| fault | found as | rolled back after, s | requests | by the reference | wrong | lost, of all | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {TITLES[one['fault']]} | {one['kind']} | {one['seconds']:.2f} | {one['requests']} | "
        f"{one['by_the_reference']} | {one['wrong']} | {one['lost']} of {one['sent']} | "
        f"{' '.join(one['why'].split())} |"
        for one in found["drills"]
    ]
    origin = f"`{found['command']}`; {environment_text(found['environment'])}"
    return "\n".join([*lines, "", f"{origin}. Load of the machine, clients included: {found['load']:.1f}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    (options.run / FILE).unlink(missing_ok=True)
    with server(options.run) as drilled:
        pictures = pictures_of(40)
        drills = [
            drill(drilled, fault, pictures, clients=options.clients, healthy=HEALTHY) for fault in TITLES
        ]
    found = {
        "command": f"python benchmarks/serve_drills_http.py RUN --clients {options.clients}",
        "environment": describe(),
        "load": os.getloadavg()[0],
        "drills": [asdict(one) for one in drills],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(with_section(PAGE.read_text(), "drills-http", table(found)))
    print(table(found))


if __name__ == "__main__":
    main()
