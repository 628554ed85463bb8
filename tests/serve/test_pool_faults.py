"""What fails takes only its own request with it: a bad request, memory, a hung run, a dead worker, a lost device."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from serve import sessions
from serve.sessions import (
    SOON_S,
    Clock,
    EchoEngine,
    EchoSession,
    Gate,
    Heard,
    answer,
    asked,
    pool,
    refusal,
    submitted,
    until,
)
from vitesse.errors import BackendError, DataError
from vitesse.serve.crew import Crew
from vitesse.serve.pool import Pool
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays, Work


class Held(Gate):
    """Lets the first run wait, so that what comes meanwhile is one batch; then fails where told."""

    def __init__(self, fails: Any) -> None:
        super().__init__()
        self.fails = fails

    def __call__(self, session: EchoSession, feeds: Arrays) -> None:
        super().__call__(session, feeds)
        self.fails(session, feeds)


def together(made: Pool, gate: Gate, *works: Work) -> None:
    """Submit works so that they wait at the same time, behind one that is answered."""
    first = asked(0)
    submitted(made, first)
    assert gate.waiting.wait(SOON_S)
    submitted(made, *works)
    gate.open()
    answer(first)


def chokes_on(value: float, error: Exception) -> Any:
    def act(session: EchoSession, feeds: Arrays) -> None:
        if value in feeds["x"]:
            raise error

    return act


def test_only_the_guilty_request_of_a_batch_fails_and_with_the_runtimes_words() -> None:
    gate, heard = Held(chokes_on(2, BackendError("node Reshape_7 cannot reshape"))), Heard()
    with pool(EchoEngine(gate), max_items=4, capacity=16, observer=heard) as made:
        works = [asked(value) for value in (1, 2, 3, 4)]
        together(made, gate, *works)
        for work in (works[0], works[2], works[3]):
            assert answer(work).batch == 1
        found = refusal(works[1])
    assert (found.status, found.code) == (500, "backend")
    assert "the runtime failed on this request: node Reshape_7 cannot reshape" in found.text
    assert heard.reasons == ["backend"] and heard.batches == [(1, 1)] * 4


def test_a_request_that_does_not_fit_the_model_gets_400() -> None:
    gate = Held(chokes_on(2, DataError("x has 2 columns", expected="3")))
    with pool(EchoEngine(gate), max_items=4, capacity=16) as made:
        good, bad = asked(1), asked(2)
        together(made, gate, good, bad)
        answer(good)
        assert refusal(bad).status == 400 and "x has 2 columns" in str(refusal(bad))


def test_what_expires_while_a_failed_batch_is_tried_again_is_not_executed() -> None:
    clock = Clock()

    def act(session: EchoSession, feeds: Arrays) -> None:
        if len(feeds["x"]) > 1:
            clock.now += 5.0
            raise BackendError("it fails after a while")

    gate = Held(act)
    engine = EchoEngine(gate)
    with pool(engine, max_items=4, capacity=16, clock=clock, hang_s=1e9) as made:
        patient, hasty = asked(1, clock=clock), asked(2, clock=clock)
        hasty.deadline = clock.now + 4.0
        first = asked(0, clock=clock)
        submitted(made, first)
        assert gate.waiting.wait(SOON_S)
        submitted(made, patient, hasty)
        gate.open()
        answer(patient)
        assert refusal(hasty).status == 504
    assert [len(feeds["x"]) for feeds in engine.sessions[0].seen] == [1, 2, 1]


def holds(most: int, error: Exception) -> Any:
    def act(session: EchoSession, feeds: Arrays) -> None:
        if len(feeds["x"]) > most:
            raise error

    return act


@pytest.mark.parametrize(
    "error",
    [MemoryError(), BackendError("CUDA failure 2: out of memory"), BackendError("std::bad_alloc")],
    ids=["MemoryError", "CUDA", "C++"],
)
def test_a_batch_that_memory_does_not_hold_is_halved_until_it_fits_and_stays_so(error: Exception) -> None:
    gate, heard = Held(holds(2, error)), Heard()
    with pool(EchoEngine(gate), max_items=8, capacity=64, observer=heard) as made:
        works = [asked(value) for value in range(1, 9)]
        together(made, gate, *works)
        assert {answer(work).batch for work in works} == {2}
        assert made.health().max_items == 2
        assert heard.halved == [4, 2] and heard.reasons == []
        late = asked(20, items=8)
        submitted(made, late)
        assert answer(late).outputs["y"].shape == (8, 2)
    assert heard.halved == [4, 2]


def test_one_request_that_memory_does_not_hold_is_run_in_parts() -> None:
    engine, heard = EchoEngine(holds(2, MemoryError())), Heard()
    with pool(engine, max_items=6, observer=heard) as made:
        work = asked(1, items=5)
        submitted(made, work)
        found = answer(work)
    assert found.batch == 5 and found.device_ms == pytest.approx(1.5)
    assert [len(feeds["x"]) for feeds in engine.sessions[0].seen] == [5, 2, 2, 1]
    assert heard.halved == [2]


def test_a_single_item_that_does_not_fit_gets_503_and_the_next_is_served() -> None:
    heard = Heard()
    with pool(EchoEngine(chokes_on(7, MemoryError("4 GB"))), max_items=4, observer=heard) as made:
        large, good = asked(7), asked(1)
        submitted(made, large)
        found = refusal(large)
        submitted(made, good)
        answer(good)
    assert (found.status, found.code) == (503, "backend") and "a single item: 4 GB" in found.text
    assert heard.halved == []


def test_a_model_that_joins_its_batch_is_run_one_request_at_a_time() -> None:
    class Joins(EchoSession):
        def run(self, feeds: Any) -> Any:
            found = super().run(feeds)
            return found if len(feeds["x"]) == 1 else type(found)({"y": found.outputs["y"][:1]}, 1.0, 0.5)

    gate, engine = Gate(), EchoEngine()
    engine.act = gate
    engine.session = lambda: Joins(engine, 0)  # type: ignore[method-assign]
    with pool(engine, max_items=4, capacity=16) as made:
        works = [asked(value) for value in (1, 2, 3)]
        together(made, gate, *works)
        assert {answer(work).batch for work in works} == {1}


def test_a_hung_worker_is_replaced_its_work_answered_and_its_late_result_thrown_away() -> None:
    clock, gate, heard = Clock(), Gate(), Heard()
    engine = EchoEngine(gate)
    with pool(engine, workers=2, clock=clock, hang_s=3.0, observer=heard) as made:
        made.warm_up([])
        hung = asked(1, clock=clock)
        submitted(made, hung)
        assert gate.waiting.wait(SOON_S)
        beside = asked(2, clock=clock)
        submitted(made, beside)
        answer(beside)
        clock.now += 2.9
        assert not hung.done.done()
        clock.now += 0.2
        found = refusal(hung)
        assert found.status == 504 and "the run did not end within 3 s: its worker is replaced" in found.text
        until(lambda: made.health().ready and made.health().hanging == 1)
        until(lambda: len(engine.sessions) == 3)
        after = [asked(value, clock=clock) for value in range(3, 9)]
        submitted(made, *after)
        for work in after:
            answer(work)
        gate.open()
        until(lambda: made.health().hanging == 0)
        assert refusal(hung).status == 504
    assert sum(session.closed for session in engine.sessions) == 3
    hung_one = next(worker for worker, state in heard.states if state == "hung")
    states = [state for worker, state in heard.states if worker == hung_one]
    started, working = states[states.index("hung") + 1 :][:2]
    # Work that is there when it has started is taken at once.
    assert started == "starting" and working in ("idle", "busy")
    assert heard.batches == [(1, 1)] * 7


def test_a_late_result_that_is_delivered_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crew, "_check_own", lambda self, worker: None)
    monkeypatch.setattr(sessions, "SOON_S", 0.3)
    with pytest.raises(AssertionError):
        test_a_hung_worker_is_replaced_its_work_answered_and_its_late_result_thrown_away()


def test_a_worker_that_is_busy_with_many_short_runs_is_not_taken_for_hung() -> None:
    clock = Clock()

    def act(session: EchoSession, feeds: Arrays) -> None:
        clock.now += 2.0

    with pool(EchoEngine(act), clock=clock, hang_s=3.0, capacity=64) as made:
        works = [asked(value, clock=clock) for value in range(10)]
        submitted(made, *works)
        for work in works:
            answer(work)


def test_when_run_after_run_hangs_the_pool_is_broken() -> None:
    clock, gate = Clock(), Gate(holds=9)
    with pool(EchoEngine(gate), clock=clock, hang_s=1.0) as made:
        for value in range(3):
            work = asked(value, clock=clock)
            submitted(made, work)
            until(lambda runs=value + 1: gate.entered == runs)
            clock.now += 1.0
            assert refusal(work).status == 504
        until(lambda: made.health().broken != "")
        assert made.health().broken == "3 runs hang, more than 2: the device does not answer"
        with pytest.raises(Refusal, match="the process has to be started again"):
            made.submit(asked(9, clock=clock))
        gate.open()


@pytest.mark.parametrize(
    "error",
    [BackendError("this session is closed"), SystemExit("a library called exit")],
    ids=["session", "exit"],
)
def test_a_worker_that_dies_is_replaced_by_a_warm_one(error: BaseException) -> None:
    def act(session: EchoSession, feeds: Arrays) -> None:
        if 7 in feeds["x"] and session.number == 0:
            raise error

    engine, heard = EchoEngine(act), Heard()
    with pool(engine, observer=heard) as made:
        made.warm_up([asked(1).feeds])
        work = asked(7)
        submitted(made, work)
        found = refusal(work)
        assert found.status == 503 and found.headers["Retry-After"] == "1" and str(error) in found.text
        again = asked(7)
        submitted(made, again)
        answer(again)
    assert [feeds["x"][0, 0] for feeds in engine.sessions[1].seen] == [1, 1, 7]
    states = [state for _, state in heard.states]
    assert states[states.index("dead") + 1] == "starting" and len(engine.sessions) == 2


def test_a_session_that_does_not_open_is_tried_again_and_said() -> None:
    clock, engine = Clock(), EchoEngine()
    failing = True

    def opening(number: int) -> None:
        if failing:
            raise BackendError("no stream is left")

    engine.opening = opening
    with pool(engine, clock=clock) as made:
        until(lambda: "no stream is left" in made.health().workers[0].note)
        assert not made.health().ready
        failing = False
        until(lambda: _after(clock) and made.health().ready)
        work = asked(1, clock=clock)
        submitted(made, work)
        answer(work)


def _after(clock: Clock) -> bool:
    clock.now += 0.05
    return True


def test_a_warm_up_ends_with_an_error_where_the_worker_died() -> None:
    engine = EchoEngine()
    engine.opening = lambda number: (_ for _ in ()).throw(BackendError("no driver"))
    with pool(engine) as made, pytest.raises(BackendError, match="worker 0 ended before it was warm"):
        made.warm_up([asked(1).feeds])


def test_a_lost_device_breaks_the_pool_and_answers_everybody() -> None:
    gate = Held(chokes_on(2, BackendError("CUDA: cudaErrorIllegalAddress in MatMul_3")))
    engine, heard = EchoEngine(gate), Heard()
    with pool(engine, max_items=2, capacity=16, observer=heard) as made:
        works = [asked(value) for value in (1, 2, 3, 4)]
        together(made, gate, *works)
        for work in works:
            found = refusal(work)
            assert (found.status, found.code) == (503, "backend") and "cudaErrorIllegalAddress" in found.text
        health = made.health()
        assert health.broken.startswith("the GPU's context is lost") and not health.ready
        with pytest.raises(Refusal, match="the process has to be started again"):
            made.submit(asked(9))
        assert made.close(SOON_S) is False
    assert len(engine.sessions) == 1 and [state for _, state in heard.states].count("starting") == 1


def test_under_random_faults_every_request_ends_and_no_answer_is_wrong() -> None:
    """Errors, memory, dead sessions at once: what is answered is right, the rest is refused, nothing is left."""
    lock, runs = threading.Lock(), [0]

    def act(session: EchoSession, feeds: Arrays) -> None:
        with lock:
            runs[0] += 1
            number = runs[0]
        if number % 7 == 0:
            raise BackendError("a passing error")
        if number % 31 == 0:
            raise MemoryError
        if number % 53 == 0:
            raise BackendError("this session is closed")

    engine = EchoEngine(act)
    with pool(engine, workers=3, max_items=8, max_wait_s=0.001, capacity=10_000) as made:
        works = [asked(value, items=1 + value % 3) for value in range(900)]
        submitted(made, *works)
        right = [work for work in works if work.done.exception(SOON_S) is None]
        for work in right:
            answer(work)
        others = {refusal(work).code for work in works if work not in right}
        assert len(right) > 600 and others == {"backend"}
        assert made.health().depth == 0
    assert len(engine.sessions) > 3
