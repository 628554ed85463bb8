"""Servers of the benchmarks as processes: what was started is ended."""

import sys
import time
from pathlib import Path

import psutil

from benchmark_scripts import benchmark

# Answers 200, and has a child that nobody tells to end.
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[2], "w").write(str(child.pid))

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    serve_process = benchmark("serve_process")
    port, noted = serve_process.free_port(), tmp_path / "child"
    command = [sys.executable, "-c", SERVER, str(port), str(noted)]
    with serve_process.started("a server", command, port, "/", tmp_path / "log"):
        child = psutil.Process(int(noted.read_text()))
        assert alive(child)
    end = time.monotonic() + 10  # of 60 that it would live
    while alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(child)
