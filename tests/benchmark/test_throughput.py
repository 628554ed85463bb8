"""Throughput counts images of finished calls, with as many sessions as asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny_onnx import FEATURES, linear
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault
from vitesse.benchmark import throughput as module
from vitesse.benchmark.throughput import throughput
from vitesse.environment import usable_cores
from vitesse.errors import BackendError, DataError

ONE = [{"x": np.ones((1, FEATURES), np.float32)}]
FOUR = [{"x": np.ones((4, FEATURES), np.float32)}]


def slowed(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    monkeypatch.setattr(module, "backend", lambda name: FakeBackend(backend(name), fault))


def test_sessions_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, Fault(delay_ms=10))
    alone = throughput(linear(tmp_path), ONE, sessions=1, seconds=0.4)
    together = throughput(linear(tmp_path), ONE, sessions=3, seconds=0.4)
    assert 60 < alone.per_s <= 100
    assert 180 < together.per_s <= 300
    assert (together.sessions, together.threads, together.images) == (3, 1, len(together.ends_s))


def test_a_batch_counts_as_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, Fault(delay_ms=10))
    found = throughput(linear(tmp_path), FOUR, sessions=1, seconds=0.4)
    assert found.images == 4 * len(found.ends_s)
    assert 240 < found.per_s <= 400


def test_calls_that_end_after_the_window_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, Fault(delay_ms=150))
    found = throughput(linear(tmp_path), ONE, sessions=1, seconds=0.4)
    assert found.images in {1, 2}
    assert max(found.ends_s) <= 0.4


def test_the_default_is_one_session_per_core(tmp_path: Path) -> None:
    assert throughput(linear(tmp_path), ONE, seconds=0.1).sessions == usable_cores()


def test_one_session_with_all_threads_is_measured_where_asked_for(tmp_path: Path) -> None:
    found = throughput(linear(tmp_path), ONE, sessions=1, threads=2, seconds=0.1)
    assert (found.sessions, found.threads) == (1, 2)
    assert found.per_s > 0


def test_a_session_that_fails_under_load_fails_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, Fault(crash="device lost", after=200))
    with pytest.raises(BackendError, match="device lost"):
        throughput(linear(tmp_path), ONE, sessions=2, seconds=5)


def test_nothing_to_feed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to feed"):
        throughput(linear(tmp_path), [])
