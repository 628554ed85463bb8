"""Work whose feeds its worker makes: when, in time, alone, and what becomes of it where that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from serve.releases.router_bench import Bench
from serve.sessions import SOON_S, Clock, EchoEngine, Gate, Heard, answer, asked, pool, refusal, submitted
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays, Work


def unmade(make: Callable[[], Arrays], *, now: float = 100.0, allowed_s: float = 60.0) -> Work:
    return Work({}, now, now + allowed_s, make=make)


def ones() -> Arrays:
    return {"x": np.ones((1, 2), np.float32)}


def test_feeds_are_made_on_the_workers_thread_right_before_the_run() -> None:
    made_by = list[int]()

    def make() -> Arrays:
        made_by.append(threading.get_ident())
        return ones()

    engine = EchoEngine()
    with pool(engine, clock=Clock()) as made:
        work = unmade(make)
        made.submit(work)
        answer(work)
    assert made_by[0] in engine.sessions[0].threads and made_by[0] != threading.get_ident()


def test_work_of_shapes_that_nobody_knows_yet_shares_no_batch() -> None:
    gate, heard = Gate(), Heard()
    works = [unmade(ones), unmade(lambda: {"x": np.ones((1, 3), np.float32)}), unmade(ones)]
    with pool(EchoEngine(gate), max_items=4, clock=Clock(), observer=heard) as made:
        submitted(made, first := asked(1, clock=lambda: 100.0))
        assert gate.waiting.wait(SOON_S)
        submitted(made, *works)
        gate.open()
        for work in (first, *works):
            answer(work)
    assert heard.batches == [(1, 1)] * 4


def test_seconds_of_making_feeds_are_not_those_of_the_queue() -> None:
    clock = Clock()

    def make() -> Arrays:
        clock.now += 3.0
        return ones()

    work = unmade(make, now=clock() - 1.0)
    with pool(EchoEngine(), clock=clock) as made:
        made.submit(work)
        assert answer(work).queue_s == pytest.approx(1.0)
    assert work.made_s == pytest.approx(3.0)


def test_what_expires_while_it_waits_is_not_made_and_what_expires_meanwhile_is_not_run() -> None:
    clock, gate, calls = Clock(), Gate(), list[str]()

    def slow() -> Arrays:
        calls.append("slow")
        clock.now += 20.0
        return ones()

    def late() -> Arrays:
        calls.append("late")
        return ones()

    engine = EchoEngine(gate)
    with pool(engine, clock=clock, hang_s=1e9) as made:
        submitted(made, first := asked(1, clock=clock))
        assert gate.waiting.wait(SOON_S)
        submitted(made, works := unmade(slow, allowed_s=10.0), waiting := unmade(late, allowed_s=5.0))
        gate.open()
        answer(first)
        for work in (works, waiting):
            assert (refusal(work).status, refusal(work).code) == (504, "deadline")
        submitted(made, last := asked(2, clock=clock))
        answer(last)
    assert calls == ["slow"] and engine.sessions[0].runs == 2, "the first and the last"


@pytest.mark.parametrize("error", [Refusal(400, "bad_image", "no picture"), ZeroDivisionError("a defect")])
def test_feeds_that_cannot_be_made_fail_alone_with_their_own_error(error: Exception) -> None:
    def make() -> Arrays:
        raise error

    heard, engine = Heard(), EchoEngine()
    with pool(engine, clock=Clock(), observer=heard) as made:
        submitted(made, bad := unmade(make), good := unmade(ones))
        assert bad.done.exception(SOON_S) is error
        answer(good)
        assert bad.unfed and not good.unfed
    assert len(engine.sessions) == 1, "the worker lives on"
    assert heard.reasons == [error.code if isinstance(error, Refusal) else "internal"]


def test_a_worker_that_hangs_in_making_feeds_is_replaced() -> None:
    clock, begun, go_on = Clock(), threading.Event(), threading.Event()

    def make() -> Arrays:
        begun.set()
        assert go_on.wait(SOON_S)
        return ones()

    with pool(EchoEngine(), clock=clock, hang_s=5.0) as made:
        made.submit(hung := unmade(make))
        assert begun.wait(SOON_S)
        clock.now += 6.0
        assert refusal(hung).code == "deadline"
        made.submit(good := asked(1, clock=clock))
        answer(good)
        go_on.set()


def test_closing_waits_for_feeds_that_are_being_made() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make() -> Arrays:
        begun.set()
        assert go_on.wait(SOON_S)
        return ones()

    with pool(EchoEngine(), clock=Clock()) as made:
        made.submit(work := unmade(make))
        assert begun.wait(SOON_S)
        closing = threading.Thread(target=made.close, args=(SOON_S,))
        closing.start()
        go_on.set()
        answer(work)
        closing.join(SOON_S)
        assert not closing.is_alive()


# Through the router: for which release they are made.


def of_release(name: str) -> Arrays:
    """Feeds that say for whom they were made."""
    return {"x": np.full((1, 2), len(name), np.float32)}


def fed(bench: Bench, name: str) -> Callable[[Work], None]:
    """As a worker does: the feeds are made right before the run."""

    def act(work: Work) -> None:
        assert work.feeds == {} or work.make is not None
        work.prepare(bench.clock)
        bench.fakes[name].finish(work)

    return act


def test_feeds_that_workers_make_are_made_for_the_release_that_runs_and_for_each_copy() -> None:
    bench = Bench(compare=True)
    for name in ("fast", "reference"):
        bench.fakes[name].act = fed(bench, name)
    routed = bench.router.submit(unmade(ones, now=bench.clock.now), of_release).result(0)
    assert routed.executed.outputs["y"].tolist() == [[8.0, 8.0]], "made for `fast`"
    (copy,) = bench.fakes["reference"].taken
    assert copy.feeds["x"].tolist() == [[9.0, 9.0]], "made for `reference`"


@pytest.mark.parametrize(
    "error",
    [Refusal(400, "bad_image", "no picture"), Refusal(503, "backend", "no memory"), ZeroDivisionError()],
)
def test_feeds_that_cannot_be_made_are_no_fault_of_the_release(error: Exception) -> None:
    def no_feeds(release: str) -> Arrays:
        raise error

    def act(work: Work) -> None:
        with pytest.raises(type(error)) as caught:
            work.prepare(bench.clock)
        work.done.set_exception(caught.value)

    bench = Bench()
    bench.fakes["fast"].act = act
    for _ in range(8):
        assert bench.router.submit(unmade(ones, now=bench.clock.now), no_feeds).exception(0) is error
    assert not bench.fakes["reference"].taken and not bench.heard.breaker
    bench.fakes["fast"].act = None
    assert bench.served_by() == "fast"
