"""Servers as processes of their own, with the processor time and memory they take, and wrk as the client of all."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# Prints one JSON line; latencies are microseconds in wrk.
_SCRIPT = """
local file = assert(io.open(%(body)s, "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
%(headers)s
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests": %%d, "us": %%d, "not_ok": %%d, "broken": %%d, "p50_us": %%d, "p99_us": %%d}\\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Post:
    """What a client sends again and again: a path, a body in a file, headers."""

    path: str
    body: Path
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Load:
    """What one client saw: answers in `seconds`, those that were not 2xx, broken connections, latencies."""

    requests: int
    seconds: float
    not_ok: int
    broken: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Started:
    """A server that answers."""

    name: str
    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """Return the processor time, in seconds, that it and its children have taken since they began."""
        total = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:  # its time went to its parent
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def rss_mb(self) -> float:
        """Return the resident memory of it and its children, in MB (1e6 bytes)."""
        processes = (self.process, *self.process.children(recursive=True))
        return sum(one.memory_info().rss for one in processes) / 1e6


def ours(run: Path, port: int, *more: str) -> list[str]:
    """Return the command that serves a run as a user would, but ends at once when it is told to."""
    return [sys.executable, "-m", "vitesse", "serve", str(run), "--port", str(port), "--drain-s", "0", *more]


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    port: int,
    ready: str,
    log: Path,
    *,
    limit_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Started]:
    """Start a server, wait until `ready` answers 200, and end it.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of its log.
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}", log, limit_s)
        yield Started(name, port, psutil.Process(process.pid))
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and the processes that it has started: those of LitServe outlive it."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in psutil.wait_procs(family, timeout=2)[1]:
        one.kill()


def wrk(server: Started, post: Post, folder: Path, *, seconds: float, connections: int = 8) -> Load:
    """Load a server with one client thread, each connection sending its next request when it has an answer."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is missing; next step: apt-get install wrk")
    headers = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in post.headers.items())
    script = folder / "post.lua"
    script.write_text(_SCRIPT % {"body": json.dumps(str(post.body)), "headers": headers})
    address = f"http://127.0.0.1:{server.port}{post.path}"
    command = [
        program,
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        "10s",
        "-s",
        str(script),
        address,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(said.strip().splitlines()[-1])
    return Load(
        found["requests"], found["us"] / 1e6, found["not_ok"], found["broken"], found["p50_us"] / 1e3,
        found["p99_us"] / 1e3,
    )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], address: str, log: Path, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode}: {_tail(log)}")
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"not ready within {limit_s:g} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split())[-400:]
