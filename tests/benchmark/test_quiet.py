"""Settling waits for our own threads, and the load of others is counted without ours."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vitesse.benchmark.quiet import ForeignLoad, settle

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_settle_returns_at_once_when_nothing_runs() -> None:
    began = time.perf_counter()
    assert settle()
    assert time.perf_counter() - began < 0.2


def test_settle_waits_until_a_spinning_thread_has_stopped() -> None:
    worker = threading.Thread(target=spin, args=(0.15,))
    began = time.perf_counter()
    worker.start()
    assert settle()
    assert time.perf_counter() - began > 0.14
    worker.join()


def test_settle_says_so_when_a_thread_never_stops() -> None:
    worker = threading.Thread(target=spin, args=(0.4,))
    worker.start()
    assert not settle(limit_s=0.1)
    worker.join()


@linux
def test_the_load_of_another_process_is_counted() -> None:
    watch = ForeignLoad()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.6)
        found = watch.cores()
    finally:
        busy.kill()
        busy.wait()
    assert found is not None
    assert found > 0.4


def test_our_own_work_is_not_foreign(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    watch = ForeignLoad(stat)
    spin(0.05)
    assert watch.cores() == 0.0


def test_without_statistics_the_load_is_unknown(tmp_path: Path) -> None:
    assert ForeignLoad(tmp_path / "absent").cores() is None
