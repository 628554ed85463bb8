"""The pool on ONNX Runtime: the right answers from several sessions, and the runtime's faults as refusals."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from serve.sessions import SOON_S, Heard
from tiny_onnx import FEATURES, linear, linear_in_numpy
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault
from vitesse.backends.protocol import LoadOptions
from vitesse.serve.pool import Pool
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Work


def rows(count: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def test_batches_of_several_sessions_give_what_numpy_gives(tmp_path: Path) -> None:
    heard = Heard()
    heard.batch_executed = lambda items, works, *_: heard.batches.append((items, works))  # type: ignore[method-assign]
    with (
        backend("onnxruntime").load(linear(tmp_path), LoadOptions(threads=1)) as engine,
        Pool(engine, workers=2, max_items=8, max_wait_s=0.002, capacity=1000, observer=heard) as made,
    ):
        made.warm_up([{"x": rows(8, seed=0)}, {"x": rows(1, seed=0)}])
        now = time.monotonic()
        works = [Work({"x": rows(1 + i % 3, seed=i)}, now, now + 60.0) for i in range(200)]
        for work in works:
            made.submit(work)
        for work in works:
            found = work.done.result(SOON_S).outputs
            for name, expected in linear_in_numpy(work.feeds["x"]).items():
                np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    assert max(works for _, works in heard.batches) > 1


@pytest.mark.parametrize(
    ("crash", "status", "code"),
    [
        ("the kernel MatMul failed", 500, "backend"),
        ("cudaErrorMemoryAllocation: out of memory", 503, "backend"),
    ],
)
def test_a_runtime_that_begins_to_fail_is_refused_with_its_words(
    tmp_path: Path, crash: str, status: int, code: str
) -> None:
    fake = FakeBackend(backend("onnxruntime"), Fault(crash=crash, after=1))
    with fake.load(linear(tmp_path), LoadOptions(threads=1)) as engine, Pool(engine, workers=1) as made:
        now = time.monotonic()
        good, bad = (Work({"x": rows(1, seed=i)}, now, now + 60.0) for i in range(2))
        made.submit(good)
        assert good.done.exception(SOON_S) is None
        made.submit(bad)
        found = bad.done.exception(SOON_S)
    assert isinstance(found, Refusal) and (found.status, found.code) == (status, code) and crash in found.text


def test_feeds_that_the_graph_does_not_take_are_the_clients_fault(tmp_path: Path) -> None:
    with (
        backend("onnxruntime").load(linear(tmp_path), LoadOptions(threads=1)) as engine,
        Pool(engine, workers=1) as made,
    ):
        now = time.monotonic()
        work = Work({"x": np.zeros((1, FEATURES + 1), np.float32)}, now, now + 60.0)
        made.submit(work)
        found = work.done.exception(SOON_S)
    assert isinstance(found, Refusal) and found.status == 400
