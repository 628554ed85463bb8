"""The router over executors that fail on demand: every request is answered, by whom is said, and state is kept."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from serve.releases.router_bench import Bench, crash
from vitesse.errors import UsageError
from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.state import Phase, StateFile
from vitesse.serve.work import Work


def test_a_healthy_release_answers_and_the_reference_is_left_alone() -> None:
    bench = Bench()
    routed = bench.send(3.0).result(0)
    assert (routed.served_by, routed.why) == ("fast", "live")
    assert routed.executed.outputs["y"].tolist() == [[6.0, 6.0]]
    assert not bench.fakes["reference"].taken


def test_a_request_whose_release_fails_is_answered_by_the_reference() -> None:
    bench = Bench()
    bench.fakes["fast"].act = crash
    routed = bench.send(3.0).result(0)
    assert (routed.served_by, routed.why) == ("reference", "fallback: CUDA error")
    assert routed.executed.outputs["y"].tolist() == [[6.0, 6.0]]
    again = bench.fakes["reference"].taken[0]
    assert (again.request_id, again.deadline) == ("id", bench.fakes["fast"].taken[0].deadline)


def test_nan_is_answered_by_the_reference_unless_the_client_sent_it() -> None:
    bench = Bench()
    fast = bench.fakes["fast"]
    fast.act = lambda work: fast.finish(work, np.nan)
    assert bench.served_by() == "reference"
    assert bench.send(np.nan).result(0).served_by == "fast"


def test_after_enough_failures_the_release_is_not_asked_any_more() -> None:
    bench = Bench()
    bench.trip()
    asked = len(bench.fakes["fast"].taken)
    routed = bench.send().result(0)
    assert routed.served_by == "reference" and "fast was rolled back: 5 requests in a row" in routed.why
    assert len(bench.fakes["fast"].taken) == asked
    assert bench.heard.rollbacks == [("fast", "error")]
    assert bench.router.status()["serving"] == "reference"
    assert bench.router.status()["events"][-1]["what"] == "rolled back"


def test_when_the_reference_fails_too_the_answer_is_503_after_one_run_each() -> None:
    bench = Bench()
    bench.fakes["fast"].act = bench.fakes["reference"].act = crash
    for _ in range(20):
        with pytest.raises(Refusal, match="the reference failed as well") as refused:
            bench.send().result(0)
        assert (refused.value.status, refused.value.code) == (503, "backend")
    assert len(bench.fakes["fast"].taken) == len(bench.fakes["reference"].taken) == 20
    assert not bench.heard.rollbacks  # such requests say nothing about the release


def test_a_full_reference_does_not_hide_the_fault() -> None:
    bench = Bench()

    def full(work: Work) -> None:
        raise Refusal(503, "queue_full", "the queue is full", {"Retry-After": "1"})

    bench.fakes["fast"].act, bench.fakes["reference"].act = crash, full
    for _ in range(5):
        with pytest.raises(Refusal, match="could not answer instead: the queue is full") as refused:
            bench.send().result(0)
        assert refused.value.headers == {"Retry-After": "1"}
    assert bench.heard.rollbacks == [("fast", "error")]


@pytest.mark.parametrize(("status", "code"), [(504, "deadline"), (400, "bad_request"), (503, "queue_full")])
def test_what_is_no_fault_of_the_release_is_passed_on_and_not_counted(status: int, code: str) -> None:
    bench = Bench()
    bench.fakes["fast"].act = lambda work: work.done.set_exception(Refusal(status, code, "no"))
    for _ in range(30):
        with pytest.raises(Refusal, match=r"^no$"):
            bench.send().result(0)
    assert not bench.heard.rollbacks and not bench.fakes["reference"].taken


def test_a_full_queue_is_said_at_once() -> None:
    bench = Bench()

    def full(work: Work) -> None:
        raise Refusal(503, "queue_full", "the queue is full")

    bench.fakes["fast"].act = full
    with pytest.raises(Refusal, match="the queue is full"):
        bench.send()


def test_an_answer_that_nobody_waits_for_cancels_the_work_also_on_the_reference() -> None:
    bench = Bench()
    bench.fakes["fast"].hold = bench.fakes["reference"].hold = True
    assert bench.send().cancel()
    assert bench.fakes["fast"].taken[0].done.cancelled()
    second = bench.send()
    crash(bench.fakes["fast"].taken[1])
    assert second.cancel()
    assert bench.fakes["reference"].taken[0].done.cancelled()


def test_the_reference_is_not_asked_for_an_answer_that_nobody_waits_for() -> None:
    bench = Bench()
    bench.fakes["fast"].hold = True
    answer = bench.send()
    work = bench.fakes["fast"].taken[0]
    work.done.set_running_or_notify_cancel()  # too late to keep it from running
    assert answer.cancel()
    crash(work)
    assert not bench.fakes["reference"].taken


def test_one_probe_runs_at_a_time() -> None:
    bench = Bench()
    bench.trip()
    bench.clock.now += 31
    bench.fakes["fast"].hold = True
    asked = len(bench.fakes["fast"].taken)
    assert [bench.served_by() for _ in range(5)] == ["reference"] * 5
    assert len(bench.fakes["fast"].taken) == asked + 1


def test_probes_are_copies_that_no_client_sees_and_good_ones_bring_the_release_back() -> None:
    bench = Bench()
    bench.trip()
    bench.clock.now += 31
    for _ in range(2):
        asked = len(bench.fakes["fast"].taken)
        assert bench.served_by() == "reference"
        assert len(bench.fakes["fast"].taken) == asked + 1
    assert bench.served_by() == "fast"
    assert bench.heard.breaker == ["open", "half_open", "closed"]
    assert bench.heard.noted[-1] == "live again"


def test_a_probe_that_answers_otherwise_opens_the_breaker_again() -> None:
    bench = Bench()
    bench.trip()
    fast = bench.fakes["fast"]
    fast.act = lambda work: fast.finish(work, 7.0)
    bench.clock.now += 31
    assert bench.served_by() == "reference"
    status = bench.router.status()["breakers"]["fast"]
    assert (status["state"], status["kind"], status["cool_down_s"]) == ("open", "disagreement", 60.0)


def test_copies_come_after_the_answer_and_only_while_there_is_room() -> None:
    bench = Bench(compare=True)
    bench.fakes["reference"].hold = True  # a comparison that takes for ever
    assert bench.send().done()
    assert len(bench.fakes["reference"].taken) == 1
    bench.fakes["fast"].waiting = 6
    assert bench.send().done()
    assert len(bench.fakes["reference"].taken) == 1 and bench.heard.dropped == 1


def test_wrong_answers_are_found_by_comparison() -> None:
    bench = Bench(compare=True)
    fast = bench.fakes["fast"]
    fast.act = lambda work: fast.finish(work, 7.0)
    for _ in range(10):
        assert bench.served_by() == "fast"
    assert bench.heard.rollbacks == [("fast", "disagreement")]
    assert bench.served_by() == "reference"


@pytest.mark.parametrize(("draw", "expected"), [(0.09, "new"), (0.1, "fast")])
def test_a_canary_gets_its_share(draw: float, expected: str) -> None:
    bench = Bench(draw=draw)
    bench.router.promote("new", share=0.1)
    assert bench.served_by() == expected


def test_a_canary_that_fails_is_rejected_and_the_live_release_goes_on() -> None:
    bench = Bench()
    bench.router.promote(share=0.5)
    bench.fakes["new"].act = crash
    assert [bench.served_by() for _ in range(6)] == ["reference"] * 5 + ["fast"]
    rejected = bench.router.control.state.named("new")
    assert rejected is not None and rejected.phase is Phase.REJECTED


def test_a_shadow_gets_copies_and_answers_nobody() -> None:
    bench = Bench()
    bench.router.promote("new", shadow=True)
    new = bench.fakes["new"]
    new.act = lambda work: new.finish(work, 7.0)
    for _ in range(10):
        assert bench.served_by() == "fast"
    assert bench.heard.rollbacks == [("new", "disagreement")]
    assert len(new.taken) == 10


def test_promotion_and_rollback_by_hand_drop_nothing_that_is_in_flight() -> None:
    bench = Bench()
    bench.fakes["fast"].hold = True
    before = bench.send()
    bench.router.promote("new")
    assert bench.served_by() == "new"
    assert bench.router.rollback("wrong colours")["live"] == "fast"
    bench.fakes["fast"].finish(bench.fakes["fast"].taken[0])
    assert before.result(0).served_by == "fast"
    assert bench.heard.rollbacks == [("new", "manual")]


def test_a_release_that_is_not_loaded_is_not_promoted() -> None:
    bench = Bench()
    bench.router.control._loaded.pop("new")  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="new is not loaded in this server"):
        bench.router.promote("new")


def test_the_command_line_reaches_a_running_server_through_the_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    StateFile(tmp_path).update(lambda state: bench.router.control.state.withdrawn(5.0, "by hand"))
    assert bench.served_by() == "fast"  # it looks once a second
    bench.clock.now += 1
    assert bench.served_by() == "reference"
    assert bench.heard.noted[-1] == "rolled back"


def test_an_open_breaker_survives_a_restart_and_a_promotion_closes_it(tmp_path: Path) -> None:
    Bench(tmp_path).trip()
    again = Bench(tmp_path)
    assert again.served_by() == "reference"
    assert again.router.status()["breakers"]["fast"]["kind"] == "error"
    again.router.promote("fast")
    assert again.served_by() == "fast"


def test_a_damaged_state_lets_the_reference_answer_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text("{")
    bench = Bench(tmp_path)
    assert bench.served_by() == "reference"
    assert bench.heard.noted == ["state damaged"]


def test_a_rollback_happens_also_where_it_cannot_be_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "absent")
    bench.trip()
    assert bench.served_by() == "reference" and "not saved" in bench.heard.noted


def test_without_a_reference_the_live_release_goes_on_and_its_errors_are_answered() -> None:
    bench = Bench()
    bench.router.control._loaded.pop("reference")  # type: ignore[attr-defined]
    bench.fakes["fast"].act = crash
    for _ in range(8):
        with pytest.raises(
            Refusal, match="CUDA error; the reference could not answer instead: reference is not"
        ):
            bench.send().result(0)
    bench.fakes["fast"].act = None
    assert bench.served_by() == "fast"


def test_each_release_gets_the_feeds_it_takes() -> None:
    bench = Bench()
    bench.fakes["fast"].act = crash
    small, large = np.ones((1, 2), np.float32), np.ones((1, 4), np.float32)
    work = Work({"x": small}, 0.0, 2000.0)
    routed = bench.router.submit(work, lambda name: {"x": large if name == "reference" else small}).result(0)
    assert routed.executed.outputs["y"].shape == (1, 4)


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_that_was_answered_keeps_no_tensors_until_garbage_is_collected(fails: bool) -> None:
    bench = Bench()
    fast = bench.fakes["fast"]
    fast.hold = True  # as any worker does: callbacks are there before the end
    gc.collect()
    gc.disable()
    try:
        tensor = np.ones((1, 2), np.float32)
        gone = weakref.ref(tensor)
        routed = bench.router.submit(Work({"x": tensor}, 0.0, 2000.0))
        (crash if fails else fast.finish)(fast.taken[0])
        assert routed.result(0).served_by == ("reference" if fails else "fast")
        for fake in bench.fakes.values():
            fake.taken.clear()
        del tensor, routed
        assert gone() is None
    finally:
        gc.enable()
