"""The app on Ray Serve: really started, with two replicas on this machine. Skips without Ray."""

import http.client
import json
import os
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vitesse[ray]'")
    serve = pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'vitesse[ray]'")

import psutil
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Counter_

from serve.serving import NAME, Answer, artifact, binary_body, make_run, tensor, until
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions
from vitesse.errors import BackendError
from vitesse.ray_cluster import MIB, joined
from vitesse.run import open_run
from vitesse.serve.auth import Access, Keys
from vitesse.serve.limits import Limits
from vitesse.serve.ray import deploying, published
from vitesse.serve.ray.scale import Load, Scale, load_of
from vitesse.serve.settings import PoolSettings
from vitesse.serve.variants import ServeOptions

# Ray leaves sockets and files open where nobody sees it, and warns about its own past.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

ADMIN = "an-admin-key-of-tests"
OPTIONS = ServeOptions(workers=1, access=Access(None, Keys([ADMIN])))
TWO = Scale(2, 2)
BODIES = [binary_body(tensor(seed=seed)) for seed in range(8)]
INFER = f"/v2/models/{NAME}/infer"


@dataclass
class Deployed:
    """The app behind a proxy of Ray, and the answers that the bare session gives."""

    port: int
    folder: Path
    bare: list[Any]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            came = connection.getresponse()
            return Answer(came.status, {k.lower(): v for k, v in came.getheaders()}, came.read())
        finally:
            connection.close()

    def infer(self, index: int) -> Answer:
        body, length = BODIES[index]
        return self.ask("POST", INFER, body, Inference_Header_Content_Length=length)

    def is_right(self, index: int, answer: Answer) -> bool:
        """Whether these are the numbers of the bare session for that request."""
        length = int(answer.headers["inference-header-content-length"])
        outputs = json.loads(answer.body[:length])["outputs"]
        wanted = self.bare[index]
        found = np.frombuffer(answer.body[length:], np.float32)
        return [one["name"] for one in outputs] == list(wanted) and np.array_equal(
            found, np.concatenate([array.ravel() for array in wanted.values()])
        )


@dataclass
class Traffic:
    """Clients that ask without a pause, and again where a server says 5xx or hangs up; they give up after 60 s."""

    deployed: Deployed
    refused: Counter[int] = field(default_factory=Counter)
    right: int = 0
    wrong: int = 0
    lost: int = 0
    releases: Counter[str] = field(default_factory=Counter)

    def during(self, action: Callable[[], None], clients: int = 4) -> "Traffic":
        """Ask while `action` runs, and a little before and after it."""
        stop, lock = threading.Event(), threading.Lock()

        def client(index: int) -> None:
            while not stop.is_set():
                self._one(index % len(BODIES), lock)

        with ThreadPoolExecutor(clients) as threads:
            clients_ = [threads.submit(client, index) for index in range(clients)]
            try:
                until(lambda: self.right >= 20)
                action()
                after = self.right
                until(lambda: self.right >= after + 20)
            finally:
                stop.set()
            for one in clients_:
                one.result()
        return self

    def _one(self, index: int, lock: threading.Lock) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                answer = self.deployed.infer(index)
            except (OSError, http.client.HTTPException):
                with lock:
                    self.refused[0] += 1
                continue
            with lock:
                if answer.status == 200:
                    right = self.deployed.is_right(index, answer)
                    self.right, self.wrong = self.right + right, self.wrong + (not right)
                    self.releases[answer.headers["x-served-by"]] += 1
                    return
                self.refused[answer.status] += 1
            time.sleep(0.02)
        self.lost += 1


def replicas() -> dict[int, psutil.Process]:
    """Return the processes that hold a replica, by their id."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        if line[0].startswith(f"ray::ServeReplica:{deploying.APPLICATION}"):
            found[process.pid] = process
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def put(folder: Path, port: int, options: ServeOptions = OPTIONS, load: Load | None = None) -> None:
    run = open_run(folder)
    load = load or load_of(PoolSettings(1, 1, 0.0, 1), TWO, "cpu")
    deploying.deploy(run, options, TWO, replace(load, cpus=1), "127.0.0.1", port)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Two replicas; what a test changes, it puts back."""
    folder = make_run(tmp_path_factory.mktemp("ray") / "run")
    with (
        backend("onnxruntime").load(artifact(), LoadOptions(threads=1)) as engine,
        engine.session() as session,
    ):
        feeds = [{"images": tensor(seed=seed)} for seed in range(len(BODIES))]
        bare = [{name: array.copy() for name, array in session.run(one).outputs.items()} for one in feeds]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")  # never a cluster that somebody else runs here
        with joined(4, 100 * MIB) as cluster:
            assert cluster.own
            port = free_port()
            put(folder, port)
            yield Deployed(port, folder, bare)
            serve.shutdown()


def test_the_same_app_answers_with_the_numbers_of_the_bare_session(deployed: Deployed) -> None:
    answers = [deployed.infer(index) for index in range(len(BODIES))]
    assert [one.status for one in answers] == [200] * len(BODIES)
    assert all(deployed.is_right(index, one) for index, one in enumerate(answers))
    assert not deployed.is_right(1, answers[0])  # else the comparison would say nothing
    assert answers[0].headers["x-served-by"].startswith("fuse-")
    asked = deployed.ask("GET", "/readyz", X_Request_Id="mine")
    assert (asked.status, asked.headers["x-request-id"]) == (200, "mine")
    refused = deployed.ask("POST", INFER, b"not json")
    assert (refused.status, refused.json["code"]) == (400, "bad_request")


@pytest.mark.long
def test_a_killed_replica_costs_retries_and_no_answer(deployed: Deployed) -> None:
    before = replicas()
    assert len(before) == 2
    killed = next(iter(before))

    def kill() -> None:
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(replicas()) == 2 and killed not in replicas(), 60)

    seen = Traffic(deployed).during(kill)
    assert (seen.wrong, seen.lost) == (0, 0)
    assert set(seen.refused) <= {0, 500, 503}
    assert seen.right >= 40


@pytest.mark.long
def test_a_release_that_is_rolled_back_at_one_replica_is_rolled_back_at_all(deployed: Deployed) -> None:
    key = {"Authorization": f"Bearer {ADMIN}"}
    assert deployed.ask("POST", "/api/release/rollback", b'{"why": "a test"}').status == 401
    assert deployed.ask("POST", "/api/release/rollback", b'{"why": "a test"}', **key).status == 200

    def served_by() -> set[str]:
        return {deployed.infer(index).headers["x-served-by"] for index in range(8)}

    until(lambda: served_by() == {"reference"})
    release = json.loads((deployed.folder / "serving.json").read_text())["releases"][0]["name"]
    promoted = deployed.ask("POST", "/api/release/promote", json.dumps({"release": release}).encode(), **key)
    assert promoted.status == 200
    until(lambda: served_by() == {release})


@pytest.mark.long
def test_another_run_takes_over_without_one_refused_request(deployed: Deployed, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", stages=("source", "again"))
    before = set(replicas())
    seen = Traffic(deployed).during(lambda: put(other, deployed.port))
    assert (seen.wrong, seen.lost, dict(seen.refused)) == (0, 0, {})
    assert {name.partition("-")[0] for name in seen.releases} == {"fuse", "again"}
    until(lambda: not before & set(replicas()))
    assert deployed.infer(0).headers["x-served-by"].startswith("again-")


@pytest.mark.long
def test_a_run_that_cannot_answer_is_refused_and_the_old_replicas_serve_on(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "_TRIES", 1)
    broken = make_run(tmp_path / "broken", stages=("source", "broken"))
    opened = open_run(broken)
    (broken / "artifacts" / "broken.onnx").write_bytes(b"damaged after it was opened")
    load = load_of(PoolSettings(1, 1, 0.0, 1), TWO, "cpu")
    with pytest.raises(BackendError) as found:
        deploying.deploy(opened, OPTIONS, TWO, load, "127.0.0.1", deployed.port)
    assert str(found.value).startswith(f"the replicas do not start: the artifact {broken}")
    assert [deployed.infer(index).status for index in range(8)] == [200] * 8


def test_what_the_replicas_cannot_take_is_refused_at_once(deployed: Deployed) -> None:
    put(deployed.folder, deployed.port, load=Load(target=1, ongoing=1, queued=1, cpus=1, gpus=0))
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(deployed.infer, [index % 8 for index in range(96)]))
    refused = [one for one in answers if one.status != 200]
    assert {one.status for one in refused} == {503}
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert any(one.status == 200 for one in answers)


@pytest.mark.long
def test_a_signal_takes_the_app_away_and_a_second_one_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken_away, forced, leaving = [], [], threading.Event()
    monkeypatch.setattr(deploying, "_leave", lambda: taken_away.append(leaving.wait(20)))
    monkeypatch.setattr(deploying, "leave_now", lambda code: (forced.append(code), leaving.set()))
    for signals in (1, 2):
        leaving.clear()

        def send(count: int = signals) -> None:
            for _ in range(count):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
            if count == 1:
                leaving.set()

        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until `stay` listens
        sender = threading.Timer(0.3, send)
        sender.start()
        deploying.stay(Limits(stop_s=20.0))
        sender.join()
        signal.signal(signal.SIGTERM, before)
        assert (taken_away, set(forced)) == ([True] * signals, {1} if signals == 2 else set())


def test_every_series_is_published_with_the_name_of_its_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    class Recorder:
        def __init__(self, name: str, documentation: str, keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, set(keys)

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == self.keys
            told[self.name, tags.get("le"), tags["code"], tags["replica_id"]] = value

    monkeypatch.setattr(published, "Gauge", Recorder)
    registry = CollectorRegistry()
    Counter_("asked", "Requests.", ["code"], registry=registry).labels("200").inc(3)
    Histogram("took", "Seconds.", ["code"], buckets=[1], registry=registry).labels("200").observe(0.5)
    published.Publisher(lambda: generate_latest(registry), "r1").publish()
    assert told["asked_total", None, "200", "r1"] == 3
    assert told["took_bucket", "1.0", "200", "r1"] == told["took_count", None, "200", "r1"] == 1
    assert not any(name.endswith("_created") for name, *_ in told)
