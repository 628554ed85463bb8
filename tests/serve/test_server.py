"""The socket, the signals and the bounds of a connection; a process of its own where a signal ends it."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.catalogue import INFER, parsed
from serve.serving import (
    PICTURES,
    Live,
    binary_body,
    make_run,
    running,
    service_of,
    tensor,
    until,
    with_limits,
)
from vitesse.backends.fake import Fault
from vitesse.errors import RunFolderError, UsageError
from vitesse.run import open_run
from vitesse.serve.limits import Limits
from vitesse.serve.served import model_name, open_served
from vitesse.serve.server import listen
from vitesse.serve.shutdown import Phase, Shutdown
from vitesse.serve.variants import ServeOptions, warm_up_feeds

BODY, LENGTH = binary_body(tensor())
HEAD = {"Inference_Header_Content_Length": LENGTH}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_signal_drains_then_stops_and_time_forces_the_end() -> None:
    clock = Clock()
    shutdown = Shutdown(5.0, 30.0, clock)
    assert (shutdown.phase, shutdown.left_s) == (Phase.SERVING, 35.0)
    shutdown.signal()
    assert shutdown.phase is Phase.DRAINING
    clock.now += 5.0
    assert (shutdown.phase, shutdown.left_s) == (Phase.STOPPING, 30.0)
    clock.now += 30.0
    assert shutdown.phase is Phase.FORCED


def test_a_second_signal_forces_the_end_at_once() -> None:
    shutdown = Shutdown(5.0, 30.0, Clock())
    shutdown.signal()
    shutdown.signal()
    assert (shutdown.phase, shutdown.left_s) == (Phase.FORCED, 0.0)


def test_a_port_in_use_is_one_clear_line() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as found:
            listen("127.0.0.1", port)
    assert str(found.value) == (
        f"cannot listen on 127.0.0.1:{port}: another program listens there; choose another port with --port, "
        "or end that program"
    )


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="--host takes an address of this machine"):
        listen("192.0.2.1", 0)
    with pytest.raises(UsageError, match="--port takes a number from 0 to 65535"):
        listen("127.0.0.1", 70000)


def test_a_connection_beyond_the_limit_is_told_and_closed() -> None:
    with service_of(limits=with_limits(connections=2, header_s=20.0)) as service, running(service) as live:
        with (
            socket.create_connection(("127.0.0.1", live.port)),
            socket.create_connection(("127.0.0.1", live.port)),
        ):
            until(lambda: len(live.server.server_state.connections) == 2)
            came = parsed(live.raw(b""))
            assert came.status == 503
            assert "2 connections are open" in came.json["error"]
            assert "retry-after" in came.headers
        until(lambda: not live.server.server_state.connections)
        assert live.ask("GET", "/healthz").status == 200


def test_an_idle_connection_is_closed_and_a_silent_one_too() -> None:
    with service_of(limits=with_limits(keep_alive_s=1.0)) as service, running(service) as live:
        assert live.raw(b"") == b""
        answer = live.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert parsed(answer).status == 200


def test_a_refused_body_is_refused_before_it_was_sent() -> None:
    with service_of() as service, running(service) as live:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
        came = parsed(live.raw(head.encode()))
    assert (came.status, came.headers["connection"]) == (413, "close")


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    with service_of(fault=Fault(delay_ms=300), max_items=1, capacity=1) as service, running(service) as live:
        with ThreadPoolExecutor(8) as threads:
            came = list(threads.map(lambda _: live.ask("POST", INFER, BODY, **HEAD), range(8)))
        refused = [one for one in came if one.status == 503]
        assert {one.status for one in came} == {200, 503}
        assert all(one.json["code"] == "queue_full" and "retry-after" in one.headers for one in refused)
        assert live.ask("POST", INFER, BODY, **HEAD).status == 200


def test_a_deadline_that_passes_in_the_queue_is_a_504_and_is_never_executed() -> None:
    limits = with_limits(queue_s=0.2)
    with (
        service_of(limits=limits, fault=Fault(delay_ms=800), max_items=1, capacity=4) as service,
        running(service) as live,
    ):
        with ThreadPoolExecutor(3) as threads:
            came = list(threads.map(lambda _: live.ask("POST", INFER, BODY, **HEAD), range(3)))
        assert sorted(one.status for one in came) == [200, 504, 504]
        assert service.tally.counters().executions <= 1
        assert service.router.pool.counters().taken == 1


def test_a_client_that_hangs_up_is_not_executed_and_is_counted() -> None:
    with service_of(fault=Fault(delay_ms=600), max_items=1, capacity=4) as service, running(service) as live:
        first = threading.Thread(target=live.ask, args=("POST", INFER, BODY), kwargs=HEAD)
        first.start()
        pool = service.router.pool
        until(lambda: pool.counters().taken == 1)
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
            connection.sendall(f"{head}Inference-Header-Content-Length: {LENGTH}\r\n\r\n".encode() + BODY)
            until(lambda: pool.health().depth == 1)
        until(lambda: pool.counters().cancelled == 1)
        first.join()
        assert pool.counters().taken == 1
        assert 'reason="cancelled",version="1"} 1.0' in live.ask("GET", "/metrics").body.decode()


def test_a_run_that_hangs_is_given_up_and_the_next_request_answered() -> None:
    with service_of(fault=Fault(delay_ms=1500), max_items=1, hang_s=0.3) as service, running(service) as live:
        came = live.ask("POST", INFER, BODY, **HEAD)
        assert (came.status, came.json["code"]) in {(504, "deadline"), (504, "backend"), (503, "backend")}
        assert live.ask("GET", "/v2/health/live").status == 200


def test_a_lost_device_ends_liveness_and_readiness() -> None:
    with service_of() as service, running(service) as live:
        service.why_dead = lambda: "the GPU's context is lost: CUDA error 700"
        for path in ("/v2/health/live", "/healthz", "/readyz"):
            came = live.ask("GET", path)
            assert came.status == 503
            assert "CUDA error 700" in came.json["error"]


# A whole run.


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("served") / "run")


def test_a_run_is_ready_once_both_models_are_warm(run_folder: Path) -> None:
    with open_served(open_run(run_folder), ServeOptions(workers=1, limits=with_limits())) as served:
        assert "loaded and warmed up" in served.service.unready()
        served.start()
        assert served.wait(30)
        with running(served.service) as live:
            came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())
            assert came.headers["x-served-by"].startswith("fuse-")
            status = live.ask("GET", "/api/status").json
            assert status["ready"] is True
            assert live.ask("GET", "/v2/models/vit_fashion/ready").status == 200


def test_a_failed_warm_up_leaves_the_server_up_and_not_ready_with_the_reason(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the first run failed")

    monkeypatch.setattr("vitesse.serve.variants.warm_up_feeds", broken)
    with open_served(open_run(run_folder), ServeOptions(workers=1, reference=False)) as served:
        served.start()
        assert not served.wait(30)
        assert "failed: the first run failed" in served.service.unready()


def test_an_artifact_that_is_wrong_on_this_machine_never_becomes_ready(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitesse.backends import backend
    from vitesse.backends.fake import FakeBackend, with_nan

    found = FakeBackend(backend("onnxruntime"), Fault(change=with_nan))
    monkeypatch.setattr("vitesse.serve.variants.backend", lambda name: found)
    with open_served(open_run(run_folder), ServeOptions(workers=1)) as served:
        served.start()
        assert not served.wait(30)
        assert "is not right on this machine" in served.service.unready()


def test_an_artifact_with_a_flipped_byte_is_not_served(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = next((folder / "artifacts").glob("fuse*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError):
        open_served(open_run(folder), ServeOptions())


def test_warm_up_begins_with_the_largest_shape(run_folder: Path) -> None:
    from dataclasses import replace

    spec = open_run(run_folder).artifact.spec
    rules = replace(spec.preprocessing, buckets=((32, 32), (64, 64), (48, 64)))
    shapes = [next(iter(one.values())).shape for one in warm_up_feeds(replace(spec, preprocessing=rules), 4)]
    assert [(shape[0], *shape[2:]) for shape in shapes] == [
        (4, 64, 64), (1, 64, 64), (4, 48, 64), (1, 48, 64), (4, 32, 32), (1, 32, 32),
    ]  # fmt: skip


def test_a_model_is_named_after_its_file() -> None:
    assert model_name("models/detr r50.onnx") == "detr_r50"
    assert model_name("timm:vit/tiny") == "tiny"
    assert model_name("…") == "model"


PROGRAM = """
import sys
from pathlib import Path
from vitesse.cli import build_parser
import argparse
from vitesse.cli import serve
from vitesse.errors import VitesseError
parser = argparse.ArgumentParser(); serve.add(parser); options = parser.parse_args(sys.argv[1:])
try:
    sys.exit(options.run(options))
except VitesseError as error:
    print(f"vitesse: {error}", file=sys.stderr); sys.exit(error.exit_code)
"""


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    """Serve in a process of its own; `Live` can only ask."""
    # Nobody reads the log, and a pipe that is full would stop the server.
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert "http://127.0.0.1:" in line
        live = Live(int(line.rsplit(":", 1)[1].strip(" /\n")), None, None, None)  # type: ignore[arg-type]
        until(lambda: live.ask("GET", "/readyz").status == 200)
        yield started, live
    finally:
        started.kill()
        started.communicate()


def test_sigterm_under_load_drops_nothing_that_was_accepted(run_folder: Path) -> None:
    arguments = (
        str(run_folder),
        "--port",
        "0",
        "--workers",
        "1",
        "--drain-s",
        "1",
        "--queue-s",
        "20",
        "--no-reference",
    )
    with process(*arguments) as (server, live):
        picture, answers, not_ready = PICTURES[0].read_bytes(), [], []

        def client() -> None:
            while True:
                try:
                    answers.append(live.ask("POST", "/v1/classify", picture).status)
                except ConnectionRefusedError:
                    return

        with ThreadPoolExecutor(4) as threads:
            for _ in range(4):
                threads.submit(client)
            until(lambda: len(answers) > 20)
            server.send_signal(signal.SIGTERM)
            until(lambda: live.ask("GET", "/readyz").status == 503)
            not_ready.append(len(answers))
            until(lambda: server.poll() is not None)
        assert set(answers) == {200}
        assert len(answers) > not_ready[0], "requests were answered while draining"
        assert server.returncode == 0


def test_a_second_sigterm_forces_the_end(run_folder: Path) -> None:
    with process(str(run_folder), "--port", "0", "--workers", "1", "--drain-s", "60") as (server, live):
        server.send_signal(signal.SIGTERM)
        until(lambda: live.ask("GET", "/readyz").status == 503)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 1
        assert time.monotonic() - began < 20


def test_a_run_that_is_none_is_one_error_and_an_exit_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no ledger at" in done.stderr
    assert "Traceback" not in done.stderr


def test_limits_come_from_the_command_line() -> None:
    import argparse

    from vitesse.cli import serve

    parser = argparse.ArgumentParser()
    serve.add(parser)
    options = parser.parse_args(["run", "--body", "1MiB", "--queue-s", "0.5", "--drain-s", "0"])
    assert serve.limits_of(options) == Limits(body_bytes=2**20, queue_s=0.5, drain_s=0.0)


def test_what_stays_until_the_end_is_no_work_for_the_garbage_collector() -> None:
    program = (
        "import gc; import vitesse.serve.server as server; server._spare_what_stays(); "
        "kept = gc.get_freeze_count(); left = len(gc.get_objects()); assert kept > 10_000 > 100 > left, (kept, left)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
