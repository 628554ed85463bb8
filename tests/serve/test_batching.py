"""Every work ends once, in time and in order, and batches are neither mixed nor too large."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from vitesse.serve.batching import Batch, Batcher, refuse
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Work

MAX_ITEMS, MAX_WAIT_S, CAPACITY = 4, 0.010, 12


def work(arrived: float = 0.0, *, items: int = 1, size: int = 2, deadline: float = 9.0) -> Work:
    return Work({"x": np.zeros((items, size), np.float32)}, arrived, deadline)


def batcher(max_items: int = 4, max_wait_s: float = 0.010, capacity: int = 12) -> Batcher:
    return Batcher(max_items, max_wait_s, capacity)


def refused(made: Batcher, offered: Work, now: float = 0.0) -> Refusal:
    with pytest.raises(Refusal) as caught:
        made.offer(offered, now)
    assert offered.done.exception(timeout=0) is caught.value
    return caught.value


def test_a_batch_is_due_when_the_oldest_request_has_waited_not_when_the_newest_has() -> None:
    made = batcher()
    made.offer(work(0.000), 0.000)
    made.offer(work(0.009), 0.009)
    assert made.due_at(0.009) == pytest.approx(0.010)
    assert made.take(0.0099) is None
    batch = made.take(0.010)
    assert batch is not None and batch.items == 2 and made.depth() == 0


def test_the_wait_counts_from_the_requests_arrival_not_from_the_offer() -> None:
    made = batcher()
    made.offer(work(0.0), 0.5)
    assert made.due_at(0.5) == pytest.approx(0.010)
    assert made.take(0.5) is not None


def test_a_full_batch_is_due_at_once() -> None:
    made = batcher()
    for _ in range(4):
        made.offer(work(), 0.0)
    assert made.due_at(0.0) == 0.0
    batch = made.take(0.0)
    assert batch is not None and batch.items == 4


def test_nothing_is_due_where_nothing_waits() -> None:
    assert batcher().due_at(0.0) is None and batcher().take(0.0) is None


def test_keys_are_never_mixed_and_the_oldest_goes_first() -> None:
    made = batcher(max_wait_s=0.0)
    for arrived, size in ((0.1, 2), (0.0, 3), (0.2, 2)):
        made.offer(work(arrived, size=size), 0.2)
    shapes = [[one.feeds["x"].shape[1] for one in batch.works] for batch in taken_all(made, 0.2)]
    assert shapes == [[3], [2, 2]]


def test_a_rare_size_is_not_starved_by_a_line_that_is_always_full() -> None:
    made = batcher(capacity=100)
    made.offer(work(0.0, size=7), 0.0)
    now, batches = 0.001, 0
    while True:
        for _ in range(4):
            made.offer(work(now), now)
        batch = made.take(now)
        assert batch is not None
        if batch.works[0].feeds["x"].shape[1] == 7:
            break
        now, batches = now + 0.001, batches + 1
        assert batches <= 11
    assert now == pytest.approx(0.010, abs=0.0011)


def taken_all(made: Batcher, now: float) -> list[Batch]:
    found = []
    while (batch := made.take(now)) is not None:
        found.append(batch)
    return found


def test_a_full_queue_answers_503_at_once_and_says_when_to_try_again() -> None:
    made = batcher(capacity=4)
    for _ in range(4):
        made.offer(work(), 0.0)
    found = refused(made, work())
    assert (found.status, found.code, found.headers["Retry-After"]) == (503, "queue_full", "1")
    assert "4 of 4 items wait, this request brings 1" in found.text


def test_cancelled_and_expired_work_gives_its_room_to_others() -> None:
    made = batcher(capacity=4)
    leaving = [work(deadline=1.0), work(), work(), work()]
    for one in leaving:
        made.offer(one, 0.0)
    leaving[1].done.cancel()
    made.offer(work(items=2), 1.0)
    assert made.depth() == 4 and made.counters.expired == 1 and made.counters.cancelled == 1


def test_expired_work_gets_504_and_is_never_taken() -> None:
    made = batcher()
    late = work(deadline=0.005)
    made.offer(late, 0.0)
    assert made.due_at(0.0) == 0.005
    assert made.take(0.005) is None
    found = late.done.exception(timeout=0)
    assert isinstance(found, Refusal) and (found.status, found.code) == (504, "deadline")
    assert "it waited 0.005 s and had 0.005 s" in found.text


def test_work_that_comes_after_its_deadline_gets_504() -> None:
    assert refused(batcher(), work(deadline=1.0), now=1.0).status == 504


def test_cancelled_work_is_counted_and_not_taken() -> None:
    made = batcher()
    gone, kept = work(), work()
    made.offer(gone, 0.0)
    made.offer(kept, 0.0)
    assert gone.done.cancel()
    batch = made.take(1.0)
    assert batch is not None and batch.works == (kept,) and made.counters.cancelled == 1


def test_taken_work_cannot_be_cancelled_any_more() -> None:
    made, one = batcher(), work()
    made.offer(one, 0.0)
    made.take(1.0)
    assert not one.done.cancel() and one.done.running()


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"x": np.zeros((5, 2))}, "the request has a batch of 5; expected 1 to 4: split it"),
        ({"x": np.zeros((0, 2))}, "the request has a batch of 0; expected 1 to 4: send at least one"),
        ({}, "the inputs are none; expected one or more"),
        ({"x": np.zeros(())}, r"x \(\)"),
        (
            {"x": np.zeros((2, 2)), "y": np.zeros((3, 2))},
            r"x \(2, 2\), y \(3, 2\); expected .* a common first",
        ),
    ],
)
def test_feeds_that_make_no_batch_get_400(feeds: dict[str, Any], text: str) -> None:
    found = refused(batcher(), Work(feeds, 0.0, 9.0))
    assert (found.status, found.code) == (400, "bad_request")
    assert re.search(text, found.text)


def test_after_lowering_a_larger_request_that_was_promised_comes_out_alone() -> None:
    made = batcher()
    made.lower(2)
    for items in (1, 4, 1):
        made.offer(work(items=items), 0.0)
    assert [batch.items for batch in taken_all(made, 1.0)] == [1, 4, 1]


def test_lowering_never_raises_the_limit_and_stops_at_one() -> None:
    made = batcher()
    made.lower(0)
    made.lower(3)
    assert made.max_items == 1 and made.largest == 4


def test_abandoned_work_is_refused() -> None:
    made, one = batcher(), work()
    made.offer(one, 0.0)
    assert made.abandon(Refusal(503, "not_ready", "over")) == 1
    assert str(one.done.exception(timeout=0)) == "over" and made.depth() == 0


@pytest.mark.parametrize("wrong", [(0, 0.0, 4), (2, -1.0, 4), (2, float("inf"), 4), (4, 0.0, 3)])
def test_settings_that_cannot_work_are_refused(wrong: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="expected max_items of at least 1"):
        Batcher(*wrong)


class Machine(RuleBasedStateMachine):
    """Offers, cancels, waits and takes in any order, beside a list of what should be waiting."""

    made: ClassVar[type[Batcher]] = Batcher

    def __init__(self) -> None:
        super().__init__()
        self.batcher = self.made(MAX_ITEMS, MAX_WAIT_S, CAPACITY, answer=self.answer)
        self.now = 1.0
        self.offered: list[Work] = []
        self.waiting: list[Work] = []
        self.ends: dict[Work, int] = {}

    def answer(self, one: Work, refusal: Refusal) -> None:
        self.ends[one] = self.ends.get(one, 0) + 1
        refuse(one, refusal)

    @rule(
        items=st.sampled_from((1, 1, 1, 2, 3, MAX_ITEMS, MAX_ITEMS + 1)),
        size=st.integers(1, 2),
        late_ms=st.integers(0, 12),
        patience_ms=st.integers(0, 60),
    )
    def offer(self, items: int, size: int, late_ms: int, patience_ms: int) -> None:
        arrived = self.now - late_ms / 1e3
        one = work(arrived, items=items, size=size, deadline=arrived + patience_ms / 1e3)
        self.offered.append(one)
        free = CAPACITY - sum(other.items for other in self.alive())
        try:
            self.batcher.offer(one, self.now)
        except Refusal as found:
            assert found.code in {"bad_request", "deadline", "queue_full"}
            assert (found.code == "bad_request") == (items > MAX_ITEMS)
            assert found.code != "queue_full" or items > free
        else:
            assert items <= free
            self.waiting.append(one)

    def alive(self) -> list[Work]:
        return [one for one in self.waiting if one.deadline > self.now and not one.done.cancelled()]

    @rule(ms=st.integers(1, 6))
    def wait(self, ms: int) -> None:
        self.now += ms / 1e3

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).done.cancel()

    @precondition(lambda self: self.waiting)
    @rule()
    def wait_until_due(self) -> None:
        due = self.batcher.due_at(self.now)
        before = self.batcher.depth()
        if not before:
            assert due is None
            return
        assert due is not None
        self.now = max(self.now, due)
        self.take()
        assert self.batcher.depth() < before, "it said that something was due, and nothing was"

    @rule()
    def take(self) -> None:
        alive = self.alive()
        lines: dict[Any, list[Work]] = {}
        for one in sorted(alive, key=lambda one: (one.arrived, self.offered.index(one))):
            lines.setdefault(one.key, []).append(one)
        due = [
            line
            for line in lines.values()
            if sum(one.items for one in line) >= MAX_ITEMS or line[0].arrived + MAX_WAIT_S <= self.now
        ]
        batch = self.batcher.take(self.now)
        self.waiting = [one for one in alive if batch is None or one not in batch.works]
        if batch is None:
            assert not due, "a batch was due"
            return
        oldest = min(line[0].arrived for line in due) if due else None
        assert oldest is not None, "nothing was due"
        line = lines[batch.key]
        count = len(batch.works)
        assert list(batch.works) == line[:count], "not the oldest of one line, in order"
        assert batch.works[0].arrived == oldest, "an older line waits"
        assert batch.items == sum(one.items for one in batch.works) <= MAX_ITEMS
        assert count == len(line) or batch.items + line[count].items > MAX_ITEMS, "one more had fitted"
        for one in batch.works:
            assert one.done.running()
            self.ends[one] = self.ends.get(one, 0) + 1

    @invariant()
    def every_work_ends_once(self) -> None:
        waiting = set(self.waiting)
        for one in self.offered:
            assert self.ends.get(one, 0) <= 1, "it ended twice"
            if one not in waiting:
                assert self.ends.get(one, 0) == 1 or one.done.cancelled(), "it left without an end"

    @invariant()
    def the_counters_add_up(self) -> None:
        found = self.batcher.counters
        left = found.taken + found.full + found.invalid + found.expired + found.cancelled + found.abandoned
        held = sum(len(line) for line in self.batcher._lines.values())
        assert found.offered == left + held
        assert self.batcher.depth() <= CAPACITY

    def teardown(self) -> None:
        self.now += 100.0
        self.batcher.drop(self.now)
        self.waiting = []
        self.every_work_ends_once()
        assert self.batcher.depth() == 0


CAREFUL = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

# Nobody reads the shortest way to break what is known to be broken.
UNTIL_IT_FAILS = settings(
    CAREFUL, max_examples=300, database=None, phases=(Phase.generate,), print_blob=False
)


def test_whatever_happens_every_work_ends_once_in_order_and_in_time() -> None:
    run_state_machine_as_test(Machine, settings=CAREFUL)


class CountsFromTheNewest(Batcher):
    def _due(self, line: Any, now: float) -> float:
        return super()._due(line[-1:] if len(line) < MAX_ITEMS else line, now)


class TakesTooMany(Batcher):
    def _cut(self, key: Any) -> Batch | None:
        self.max_items += 1
        try:
            return super()._cut(key)
        finally:
            self.max_items -= 1


class ForgetsDeadlines(Batcher):
    def drop(self, now: float) -> int:
        return super().drop(0.0)


class TakesTheNewestFirst(Batcher):
    def _cut(self, key: Any) -> Batch | None:
        self._lines[key].reverse()
        return super()._cut(key)


class LosesWork(Batcher):
    def _cut(self, key: Any) -> Batch | None:
        batch = super()._cut(key)
        return None if batch is None else Batch(batch.works[:1], batch.key, batch.works[0].items)


class AnswersTwice(Batcher):
    def drop(self, now: float) -> int:
        for line in self._lines.values():
            for one in line:
                if one.work.deadline <= now and not one.work.done.cancelled():
                    self._answer(one.work, Refusal(504, "deadline", "twice"))
                    one.work.done = work().done  # so that the second answer does not raise
        return super().drop(now)


@pytest.mark.parametrize(
    "broken",
    [
        CountsFromTheNewest,
        TakesTooMany,
        ForgetsDeadlines,
        TakesTheNewestFirst,
        LosesWork,
        AnswersTwice,
    ],
)
def test_a_broken_batcher_is_caught(broken: type[Batcher]) -> None:
    machine = type("Broken", (Machine,), {"made": broken})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=UNTIL_IT_FAILS)
