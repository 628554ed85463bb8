"""Every request gets its own answer, whatever runs beside it, and every future ends."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from serve.sessions import (
    SOON_S,
    Clock,
    EchoEngine,
    Gate,
    Heard,
    answer,
    asked,
    pool,
    refusal,
    submitted,
    until,
)
from vitesse.errors import BackendError, UsageError
from vitesse.serve import workers
from vitesse.serve.pool import Pool
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Executed, Work


def test_each_of_many_concurrent_requests_gets_the_answer_to_its_own_inputs() -> None:
    works: list[Work] = []

    def client(number: int) -> None:
        choose = random.Random(number)
        for turn in range(60):
            work = asked(number * 1000 + turn, items=choose.randint(1, 3), size=choose.randint(1, 2))
            works.append(work)
            made.submit(work)
            if choose.random() < 0.3:
                work.done.exception(SOON_S)

    heard = Heard()
    with pool(EchoEngine(), workers=3, max_items=4, max_wait_s=0.001, capacity=9999, observer=heard) as made:
        clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        answers = [answer(work) for work in works]
    assert len(answers) == 360 and max(found.batch for found in answers) > 1
    assert sum(count for _, count in heard.batches) == 360
    assert sum(items for items, _ in heard.batches) == sum(work.items for work in works)


def test_an_answer_stays_valid_when_the_session_runs_again() -> None:
    with pool(EchoEngine()) as made:
        first, second = asked(1), asked(2)
        submitted(made, first)
        kept = answer(first)
        submitted(made, second)
        answer(second)
        assert kept is answer(first)


def test_answers_that_share_the_sessions_arrays_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "split", lambda outputs, counts: [outputs])
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        test_an_answer_stays_valid_when_the_session_runs_again()


def test_a_batch_whose_answers_are_swapped_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = workers.split
    monkeypatch.setattr(workers, "split", lambda outputs, counts: right(outputs, counts)[::-1])
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        test_what_waits_while_a_worker_is_busy_runs_together()


def test_what_waits_while_a_worker_is_busy_runs_together() -> None:
    gate, heard = Gate(), Heard()
    with pool(EchoEngine(gate), max_items=4, capacity=16, observer=heard) as made:
        works = [asked(value) for value in range(6)]
        submitted(made, works[0])
        assert gate.waiting.wait(SOON_S)
        submitted(made, *works[1:])
        gate.open()
        assert [answer(work).batch for work in works] == [1, 4, 4, 4, 4, 1]
    assert heard.batches == [(1, 1), (4, 4), (1, 1)]


def test_one_request_is_run_on_its_own_arrays_and_batches_on_reused_ones() -> None:
    gate, engine = Gate(), EchoEngine()
    engine.act = gate
    with pool(engine, max_items=2, capacity=16) as made:
        works = [asked(value) for value in range(5)]
        submitted(made, works[0])
        assert gate.waiting.wait(SOON_S)
        submitted(made, *works[1:])
        gate.open()
        for work in works:
            answer(work)
    alone, first, second = (feeds["x"] for feeds in engine.sessions[0].seen)
    assert alone is works[0].feeds["x"]
    assert first.ctypes.data == second.ctypes.data


def test_a_lone_request_waits_for_company_and_no_longer() -> None:
    clock = Clock()
    with pool(EchoEngine(), max_items=4, max_wait_s=0.5, clock=clock) as made:
        work = asked(1, clock=clock)
        submitted(made, work)
        until(lambda: made.health().workers[0].state == "idle")
        assert not work.done.done()
        clock.now += 0.5
        assert answer(work).queue_s == pytest.approx(0.5)


def test_work_left_behind_by_a_full_batch_is_watched_by_another_worker() -> None:
    with pool(EchoEngine(), workers=2, max_items=2, max_wait_s=0.02, capacity=64) as made:
        works = [asked(value) for value in range(5)]
        submitted(made, *works)
        assert sorted(answer(work).batch for work in works)[0] == 1


def test_a_full_queue_refuses_at_once_and_serves_those_who_wait() -> None:
    gate, heard = Gate(), Heard()
    with pool(EchoEngine(gate), max_items=1, capacity=2, observer=heard) as made:
        held, *waiting = (asked(value) for value in range(3))
        submitted(made, held)
        assert gate.waiting.wait(SOON_S)
        submitted(made, *waiting)
        late = asked(9)
        with pytest.raises(Refusal, match="the queue is full: 2 of 2 items wait") as caught:
            made.submit(late)
        assert caught.value.status == 503 and caught.value.headers["Retry-After"] == "1"
        assert late.done.exception(0) is caught.value and made.health().depth == 2
        gate.open()
        for work in (held, *waiting):
            answer(work)
    assert heard.reasons == ["queue_full"]


def test_work_whose_client_has_gone_is_not_executed() -> None:
    gate, heard = Gate(), Heard()
    engine = EchoEngine(gate)
    with pool(engine, observer=heard) as made:
        held, gone, kept = (asked(value) for value in range(3))
        submitted(made, held)
        assert gate.waiting.wait(SOON_S)
        submitted(made, gone, kept)
        assert gone.done.cancel()
        gate.open()
        answer(kept)
    assert [feeds["x"][0, 0] for feeds in engine.sessions[0].seen] == [0, 2]
    assert heard.reasons == ["cancelled"] and made.counters().cancelled == 1


def test_work_that_expires_while_all_workers_are_busy_is_answered_then_and_never_executed() -> None:
    clock, gate, heard = Clock(), Gate(), Heard()
    engine = EchoEngine(gate)
    with pool(engine, clock=clock, observer=heard, hang_s=1e9) as made:
        held, late = asked(1, clock=clock), asked(2, clock=clock)
        late.deadline = clock.now + 1.0
        submitted(made, held)
        assert gate.waiting.wait(SOON_S)
        submitted(made, late)
        clock.now += 1.0
        assert refusal(late).status == 504
        assert not held.done.done()
        gate.open()
        answer(held)
    assert engine.sessions[0].runs == 1 and heard.reasons == ["deadline"]


def test_an_engine_of_batch_one_gets_one_item_a_run() -> None:
    gate = Gate()
    with pool(EchoEngine(gate, batch=1), max_items=8) as made:
        works = [asked(value) for value in range(3)]
        submitted(made, works[0])
        assert gate.waiting.wait(SOON_S)
        submitted(made, *works[1:])
        gate.open()
        assert {answer(work).batch for work in works} == {1}


def test_each_session_lives_on_one_thread_that_warms_it_up_largest_first() -> None:
    engine = EchoEngine()
    largest, smallest = asked(1, items=4).feeds, asked(2).feeds
    with pool(engine, workers=2, max_items=4) as made:
        assert made.warm_up([largest, smallest]) >= 0
        works = [asked(value) for value in range(8)]
        submitted(made, *works)
        for work in works:
            answer(work)
    assert len(engine.sessions) == 2
    for session in engine.sessions:
        assert [len(feeds["x"]) for feeds in session.seen[:4]] == [4, 4, 1, 1]
        assert len(session.threads) == 1 and session.closed
    assert engine.sessions[0].threads != engine.sessions[1].threads


def test_a_warm_up_that_fails_says_so_and_the_pool_goes_on() -> None:
    def act(session: Any, feeds: Any) -> None:
        if feeds["x"].shape[1] == 9:
            raise MemoryError("no room for 9")

    with pool(EchoEngine(act)) as made:
        with pytest.raises(MemoryError, match="no room for 9"):
            made.warm_up([asked(1, size=9).feeds])
        work = asked(2)
        submitted(made, work)
        answer(work)


def test_a_warm_up_that_ends_its_thread_is_answered_and_the_worker_replaced() -> None:
    def act(session: Any, feeds: Any) -> None:
        if session.number == 0:
            raise SystemExit("a library called exit")

    with pool(EchoEngine(act)) as made:
        with pytest.raises(BackendError, match="worker 0 died during the warm-up: SystemExit: a library"):
            made.warm_up([asked(1).feeds])
        work = asked(2)
        submitted(made, work)
        answer(work)


def test_a_callback_may_submit_again() -> None:
    with pool(EchoEngine()) as made:
        first, second = asked(1), asked(2)
        first.done.add_done_callback(lambda _: made.submit(second))
        submitted(made, first)
        answer(second)


def test_an_observer_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Heard):
        def batch_executed(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("a broken observer")

    with pool(EchoEngine(), observer=Failing()) as made:
        for value in range(3):
            work = asked(value)
            submitted(made, work)
            answer(work)
    assert "an observer of the pool failed" in caplog.text


def test_closing_finishes_what_was_accepted_and_takes_no_more() -> None:
    gate, engine = Gate(), EchoEngine()
    engine.act = gate
    made = Pool(engine, workers=1, look_s=0.005)
    works = [asked(value) for value in range(4)]
    submitted(made, *works)
    assert gate.waiting.wait(SOON_S)
    closed: Future[bool] = Future()
    thread = threading.Thread(target=lambda: closed.set_result(made.close(SOON_S)))
    thread.start()
    until(lambda: not made.health().ready)
    late = asked(9)
    with pytest.raises(Refusal, match="shutting down and it takes no more work") as caught:
        made.submit(late)
    assert (caught.value.status, caught.value.code) == (503, "not_ready")
    gate.open()
    assert closed.result(SOON_S) is True
    thread.join()
    for work in works:
        answer(work)
    assert engine.sessions[0].closed and made.close() is True


def test_closing_by_force_refuses_the_rest_and_says_that_a_thread_is_left() -> None:
    gate, heard = Gate(), Heard()
    engine = EchoEngine(gate)
    made = Pool(engine, workers=1, look_s=0.005, observer=heard)
    running, waiting = asked(1), asked(2)
    submitted(made, running)
    assert gate.waiting.wait(SOON_S)
    submitted(made, waiting)
    assert made.close(0.0) is False
    for work in (running, waiting):
        assert refusal(work).code == "not_ready" and "time to finish accepted work is over" in str(
            refusal(work)
        )
    gate.open()
    until(lambda: engine.sessions[0].closed)
    assert engine.sessions[0].runs == 1 and heard.batches == []


@pytest.mark.parametrize("count", [0, -1])
def test_a_pool_needs_a_worker(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} workers; expected at least 1"):
        Pool(EchoEngine(), workers=count)


def test_at_twice_the_capacity_every_accepted_request_is_answered_right_and_the_queue_stays_bounded() -> None:
    """Two sessions of 2 ms give 1000 runs a second at most; eight clients without a pause bring more."""
    engine = EchoEngine(lambda session, feeds: time.sleep(0.002))
    results: list[tuple[Work, Executed]] = []
    refusals: list[Refusal] = []
    deepest = 0
    end = time.monotonic() + 2.0

    def client(number: int) -> None:
        nonlocal deepest
        choose = random.Random(number)
        sent = 0
        while time.monotonic() < end:
            works = [asked(number * 100_000 + sent + i, size=choose.randint(1, 2)) for i in range(6)]
            sent += 6
            for work in works:
                try:
                    made.submit(work)
                except Refusal as refused:
                    refusals.append(refused)
                    time.sleep(0.001)
            deepest = max(deepest, made.health().depth)
            results.extend(
                (work, work.done.result(SOON_S)) for work in works if not work.done.exception(SOON_S)
            )

    with pool(engine, workers=2, max_items=4, max_wait_s=0.001, capacity=16) as made:
        clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        counted = made.counters()
    for work, found in results:
        np.testing.assert_array_equal(found.outputs["y"], 2 * work.feeds["x"] + 1)
    assert refusals and {found.code for found in refusals} == {"queue_full"}
    assert deepest <= 16
    assert counted.taken == len(results) > 100 and counted.full == len(refusals)
    assert counted.offered == counted.taken + counted.full


def test_a_queue_without_room_for_one_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--queue 4 beside batches of up to 8\n.*8 or more(.|\n)*--batch 4"):
        Pool(EchoEngine(), workers=1, max_items=8, capacity=4)
    with pool(EchoEngine(), max_items=8, capacity=8) as made:
        assert made.health().capacity == 8
    with pool(EchoEngine(batch=1), max_items=8, capacity=4) as made:  # its batches are of one
        assert made.health().capacity == 4
