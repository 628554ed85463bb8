"""The protocol, on clocks that are known: scripted sessions, then a real model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tiny_onnx import FEATURES, linear
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault
from vitesse.backends.protocol import LoadOptions, Outcome, Tensors
from vitesse.benchmark import latency as module
from vitesse.benchmark.latency import Interleaved, WarmUp, interleave, latency_of, ratio_of, warm_up
from vitesse.errors import DataError

FEEDS: list[Tensors] = [{"x": np.full((1, FEATURES), value, np.float32)} for value in (0.0, 1.0, 2.0)]


class Scripted:
    """A session that takes no time but reports what it is told, and notes who was called with what."""

    def __init__(self, name: str, times: Callable[[int], float], log: list[tuple[str, float]]) -> None:
        self.name, self.times, self.log, self.calls = name, times, log, 0

    def run(self, feeds: Tensors) -> Outcome:
        self.log.append((self.name, float(feeds["x"][0, 0])))
        self.calls += 1
        return Outcome({}, self.times(self.calls))

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def steady(ms: float) -> Callable[[int], float]:
    return lambda _: ms


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "settle", lambda: True)


def test_warm_up_ends_when_the_medians_stand_still() -> None:
    slow_start = Scripted("a", lambda call: 50.0 - 2 * call if call <= 20 else 10.0, [])
    done = warm_up(slow_start, FEEDS)
    assert done.stable
    assert done.median_ms == 10.0
    assert 25 <= done.calls <= 35


def test_warm_up_gives_up_at_its_bound_and_says_unstable() -> None:
    ever_slower = Scripted("a", lambda call: 1.2**call, [])
    done = warm_up(ever_slower, FEEDS, most_calls=40)
    assert (done.calls, done.stable) == (40, False)
    assert warm_up(Scripted("b", lambda call: 1.2**call, []), FEEDS, limit_s=0.0).calls == 3


def test_blocks_alternate_with_rotating_order_and_the_same_feeds(no_waiting: None) -> None:
    log: list[tuple[str, float]] = []
    sessions = {name: Scripted(name, steady(20.0), log) for name in "abc"}
    found = interleave(sessions, FEEDS, seconds=0, min_rounds=4)
    warm = sum(done.calls for done in found.warm_up.values())
    blocks = [log[start : start + 4] for start in range(warm, len(log), 4)]  # 3 counted calls and the lead-in
    assert ["".join(sorted({name for name, _ in block})) for block in blocks] == list("abcbcacababc")
    for start in range(0, 12, 3):
        fed = [[value for _, value in block] for block in blocks[start : start + 3]]
        assert fed[0] == fed[1] == fed[2]
    assert {name: [len(block) for block in rounds] for name, rounds in found.rounds.items()} == {
        name: [3, 3, 3, 3] for name in "abc"
    }


def test_slow_calls_are_all_counted(no_waiting: None) -> None:
    session = Scripted("a", steady(400.0), [])
    found = interleave({"a": session}, FEEDS, seconds=0, min_rounds=5)
    assert session.calls == found.warm_up["a"].calls + 5
    assert found.latency("a").samples == 5


def test_drift_that_hits_both_leaves_the_ratio_alone(no_waiting: None) -> None:
    def drifting(ms: float) -> Callable[[int], float]:
        return lambda call: ms * (1 + max(0, call - 20) / 40)

    log: list[tuple[str, float]] = []
    sessions = {"a": Scripted("a", drifting(30.0), log), "b": Scripted("b", drifting(20.0), log)}
    found = interleave(sessions, FEEDS, seconds=0, min_rounds=30)
    assert found.latency("a").p90 > 1.5 * found.latency("a").p50 * 0.8
    ratio = found.ratio("a", "b")
    assert ratio.value == pytest.approx(1.5, rel=0.02)
    assert ratio.faster
    assert not ratio.slower
    assert found.ratio("b", "a").slower


def test_progress_rises_to_one(no_waiting: None) -> None:
    shares: list[float] = []
    interleave(
        {"a": Scripted("a", steady(60.0), [])}, FEEDS, seconds=0, min_rounds=5, on_progress=shares.append
    )
    assert shares == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_nothing_to_feed_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to feed"):
        interleave({"a": Scripted("a", steady(1.0), [])}, [])


def test_quantiles_are_those_of_numpy() -> None:
    samples = [float(value) for value in range(1, 102)]
    found = latency_of(samples)
    assert (found.p50, found.p90, found.p99, found.mean, found.samples) == (51, 91, 100, 51, 101)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (50, 18)])
def test_the_interval_is_that_of_the_sign_test(count: int, rank: int) -> None:
    """Ranks of the 95 % confidence interval of a median, as in the tables of nonparametric statistics."""
    ordered = [1 + index / 100 for index in range(count)]
    assert ratio_of(list(reversed(ordered))).interval == (ordered[rank - 1], ordered[-rank])


def test_too_few_rounds_decide_nothing() -> None:
    ratio = ratio_of([2.0, 2.1, 2.2, 2.3, 2.4])
    assert ratio.interval == (0.0, math.inf)
    assert not ratio.faster
    assert not ratio.slower


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [
        low <= 1.0 <= high
        for low, high in (ratio_of(rng.lognormal(0.0, 0.3, 15).tolist()).interval for _ in range(2000))
    ]
    assert 0.95 <= statistics.mean(covered) <= 0.975


def test_json_keeps_every_sample() -> None:
    found = Interleaved({"a": ((1.0, 2.0), (3.0,))}, {"a": WarmUp(10, True, 1.5)}, 1.0, None, 1.0)
    assert found.samples("a") == (1.0, 2.0, 3.0)
    raw = found.to_json()
    assert raw["rounds"] == {"a": [[1.0, 2.0], [3.0]]}
    assert (raw["unit"], raw["foreign_cores"]) == ("ms", None)


@pytest.mark.parametrize(("foreign", "quiet"), [(None, None), (0.02, True), (0.6, False)])
def test_a_busy_machine_is_told(foreign: float | None, quiet: bool | None) -> None:
    found = Interleaved({"a": ((1.0,),)}, {"a": WarmUp(3, True, 1.0)}, 1.0, foreign, 1.0)
    assert found.quiet is quiet


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_a_real_slowdown_is_found_and_has_its_size(tmp_path: Path, stack: ExitStack) -> None:
    options = LoadOptions(threads=1)
    sessions = {}
    for name, delay in (("fast", 4.0), ("slow", 8.0)):
        fake = FakeBackend(backend("onnxruntime"), Fault(delay_ms=delay))
        engine = stack.enter_context(fake.load(linear(tmp_path), options))
        sessions[name] = stack.enter_context(engine.session())
    began = time.perf_counter()
    found = interleave(sessions, FEEDS, seconds=0.1, min_rounds=6)
    assert time.perf_counter() - began < 10
    ratio = found.ratio("slow", "fast")
    assert ratio.faster
    assert 1.7 < ratio.value < 2.1
