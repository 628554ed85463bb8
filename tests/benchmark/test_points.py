"""Every batch size with every number of streams is measured, and what a runtime refuses is a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.test_watch import Failing, FakeSensor, idle
from tiny_onnx import FEATURES, linear
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault
from vitesse.backends.protocol import LoadOptions, Tensors
from vitesse.benchmark import points as module
from vitesse.benchmark.points import Bench, Point, Round, bench
from vitesse.benchmark.sensor import Reading
from vitesse.benchmark.watch import CLEAN, THROTTLED, UNOBSERVED, Observed, Watch
from vitesse.environment import usable_cores
from vitesse.errors import BackendError, MissingExtra, UsageError

SECONDS = 0.06


def feeds_of(batch: int) -> Tensors:
    return {"x": np.ones((batch, FEATURES), np.float32)}


def measured(tmp_path: Path, **given: Any) -> dict[tuple[int, int], Point]:
    asked = {
        "batches": (1, 4),
        "streams": (1, 2),
        "seconds": SECONDS,
        "options": LoadOptions(),
        "device": None,
    }
    found = bench(linear(tmp_path), given.pop("feeds_of", feeds_of), **{**asked, **given})
    return {point.pair: point for point in found}


class Recording:
    """The real backend, which notes how it is loaded and refuses what `refuse` returns a text for."""

    def __init__(self, refuse: Any = lambda batch, streams: "") -> None:
        self.inner, self.refuse = backend("onnxruntime"), refuse
        self.loads: list[LoadOptions] = []
        self.runs: list[tuple[int, int]] = []
        self.open = 0

    def load(self, artifact: Any, options: LoadOptions) -> Any:
        self.loads.append(options)
        engine, outer = self.inner.load(artifact, options), self
        session_of = engine.session

        def session() -> Any:
            made = session_of()
            run, close = made.run, made.close
            outer.open += 1

            def refusing(feeds: Tensors) -> Any:
                pair = len(feeds["x"]), options.sessions
                outer.runs.append(pair)
                why = outer.refuse(*pair)
                if why:
                    raise BackendError(why)
                return run(feeds)

            def closing() -> None:
                outer.open -= 1
                close()

            made.run, made.close = refusing, closing
            return made

        engine.session = session
        return engine


def recorded(monkeypatch: pytest.MonkeyPatch, **given: Any) -> Recording:
    recording = Recording(**given)
    monkeypatch.setattr(module, "backend", lambda name: recording)
    return recording


def test_every_pair_is_measured_in_rounds(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert set(found) == {(1, 1), (1, 2), (4, 1), (4, 2)}
    for point in found.values():
        assert len(point.rounds) == 3 and point.calls >= 3 * 2 * point.streams
        assert point.throughput_per_s and point.p50_ms and point.p99_ms and point.p50_ms <= point.p99_ms
        assert point.memory_mb and point.memory_mb > 10
        assert point.device_ms is None and point.cuda_graph is None
        assert point.threads == max(1, usable_cores() // point.streams)


def test_rounds_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = recorded(monkeypatch)
    measured(tmp_path)
    order = [pair for at, pair in enumerate(recording.runs) if at == 0 or recording.runs[at - 1] != pair]
    one, two = [(1, 1), (4, 1)], [(1, 2), (4, 2)]
    assert order == [*one, *two, *two, *one, *one, *two]
    assert recording.open == 0


def test_sessions_meet_their_batches_in_rising_order_so_that_memory_is_the_batchs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = recorded(monkeypatch)
    with Bench(linear(tmp_path), feeds_of, LoadOptions(), None) as opened:
        opened.measure([(1, 1)], SECONDS, rounds=1)
        opened.measure([(4, 1)], SECONDS, rounds=1)
        assert len(recording.loads) == 1  # the larger batch goes on in the open sessions
        opened.measure([(2, 1)], SECONDS, rounds=1)
        assert len(recording.loads) == 2  # the smaller does not
    assert recording.open == 0


def test_options_reach_the_runtime_with_the_number_of_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = recorded(monkeypatch)
    measured(tmp_path, options=LoadOptions(threads=3), streams=(2,))
    assert {(options.threads, options.sessions) for options in recording.loads} == {(3, 2)}


def test_what_is_refused_is_a_result_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "Failed to allocate memory for requested buffer of size 8589934592"
    recorded(monkeypatch, refuse=lambda batch, streams: full if (batch, streams) == (4, 1) else "")
    found = measured(tmp_path, batches=(1, 4, 8))
    assert (found[4, 1].verdict, found[4, 1].refusal) == ("refused", full)
    assert found[4, 1].throughput_per_s is None and found[4, 1].memory_mb is None
    assert all(point.throughput_per_s for pair, point in found.items() if pair != (4, 1))


def test_memory_that_runs_out_on_the_host_is_a_result_too(tmp_path: Path) -> None:
    def hungry(batch: int) -> Tensors:
        if batch == 4:
            raise MemoryError
        return feeds_of(batch)

    found = measured(tmp_path, feeds_of=hungry)
    assert found[4, 2].refusal == "out of memory on the host"
    assert found[1, 2].throughput_per_s


def test_a_graph_with_another_input_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    found = measured(tmp_path, feeds_of=lambda batch: {"x": np.ones((batch, 5), np.float32)})
    assert "the feed 'x' has shape (1, 5)" in found[1, 1].refusal
    assert "x float32 [N, 6]" in found[1, 1].refusal


def test_a_missing_runtime_is_an_error_and_no_row_of_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise MissingExtra("openvino is not installed", fix="pip install 'vitesse[openvino]'")

    monkeypatch.setattr(module, "backend", absent)
    with pytest.raises(MissingExtra, match="openvino is not installed"):
        measured(tmp_path)


@pytest.mark.parametrize("given", [{"batches": ()}, {"streams": ()}, {"batches": (0, 1)}])
def test_nothing_to_measure_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least one of each, from 1 on"):
        measured(tmp_path, **given)


@pytest.mark.parametrize(
    ("at", "verdict"),
    [
        (idle, CLEAN),
        (lambda turn: Reading({}, ("software power cap",)), THROTTLED),
        (Failing(good=1), UNOBSERVED),
    ],
)
def test_a_point_says_how_it_was_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Any, verdict: str
) -> None:
    def watch() -> Watch:
        return Watch(interval_s=0.02, sensors=lambda: (FakeSensor(at),))

    # A call that only holds the interpreter's lock would keep the watcher waiting; a runtime's call does not hold it.
    sleeping = FakeBackend(backend("onnxruntime"), Fault(delay_ms=5))
    monkeypatch.setattr(module, "backend", lambda name: sleeping)
    with Bench(linear(tmp_path), feeds_of, LoadOptions(), None, watch=watch) as opened:
        (point,) = opened.measure([(1, 1)], 0.6)
    assert point.verdict == verdict
    assert point.to_json()["verdict"] == verdict


def test_more_rounds_of_a_point_keep_the_worse_verdict() -> None:
    clean = Point(1, 1, rounds=(Round(100.0, (9.0, 11.0)),), observed=Observed(CLEAN))
    hot = Point(1, 1, rounds=(Round(50.0, (19.0, 21.0)),), observed=Observed(THROTTLED, "power cap"))
    for both in (clean.with_more(hot), hot.with_more(clean)):
        assert both.verdict == THROTTLED
        assert (both.throughput_per_s, both.p50_ms, both.calls) == (75.0, 15.0, 4)
    assert clean.with_more(clean).verdict == CLEAN
    assert clean.with_more(Point(1, 1, refusal="out of memory")).verdict == "refused"


def test_raw_samples_are_kept_call_by_call(tmp_path: Path) -> None:
    raw = measured(tmp_path, batches=(4,), streams=(2,))[4, 2].to_json()
    assert sum(len(one["host_ms"]) for one in raw["rounds"]) == raw["calls"] > 0
    assert raw["observed"]["expected"] >= 1
    medians = sorted(one["images_per_s"] for one in raw["rounds"])
    assert raw["throughput_per_s"] == pytest.approx(medians[1], abs=1e-3)
