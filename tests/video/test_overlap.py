import threading
from collections.abc import Callable, Iterator

import pytest

from vitesse.video import overlap as module
from vitesse.video.overlap import Aborted, Channel, Overlap


def same(item: int) -> int:
    return item


def failing_at(number: int) -> Callable[[int], int]:
    def stage(item: int) -> int:
        if item == number:
            raise ValueError(f"broken at {item}")
        return item

    return stage


def endless(ended: threading.Event) -> Iterator[int]:
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        ended.set()


def test_all_items_come_out_in_their_order() -> None:
    out: list[int] = []
    stages = [
        ("double", lambda item: 2 * item),
        ("keep", same),
        ("take", lambda item: out.append(item) or item),
    ]
    assert Overlap(stages, capacity=2).run(range(200)) is True
    assert out == [2 * item for item in range(200)]


def test_the_stages_work_at_the_same_time() -> None:
    both = threading.Barrier(
        2, timeout=20
    )  # broken, and with it the run, unless two stages are inside at once

    def meet(item: int) -> int:
        both.wait()
        return item

    stages = [
        ("one", lambda item: meet(item) if item > 0 else item),
        ("two", lambda item: meet(item) if item < 5 else item),
    ]
    assert Overlap(stages).run(range(6))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_in_any_stage_ends_all_and_is_raised_once(place: int) -> None:
    stages = [(str(index), failing_at(7) if index == place else same) for index in range(3)]
    ended = threading.Event()
    with pytest.raises(ValueError, match="broken at 7"):
        Overlap(stages, capacity=1).run(endless(ended))
    assert ended.is_set(), "the source was not closed"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("video")]


def test_an_error_in_the_source_ends_all_and_is_raised() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        Overlap([("one", same), ("two", same)]).run(source())


def test_of_two_errors_the_first_is_raised() -> None:
    inside, later = threading.Event(), threading.Event()

    def second(item: int) -> int:
        inside.set()
        later.wait(20)
        raise KeyError("later")

    def first(item: int) -> int:
        if item == 1:
            assert inside.wait(20)
            try:
                raise ValueError("first")
            finally:
                threading.Timer(0.05, later.set).start()
        return item

    with pytest.raises(ValueError, match="first"):
        Overlap([("first", first), ("second", second)]).run(range(3))


def test_an_interrupt_stops_the_source_and_finishes_what_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    out: list[int] = []
    begun, ended = threading.Event(), threading.Event()
    join = module._join

    def interrupted(threads: list[threading.Thread]) -> None:
        monkeypatch.setattr(module, "_join", join)
        assert begun.wait(20)
        raise KeyboardInterrupt

    def take(item: int) -> int:
        out.append(item)
        begun.set()
        return item

    monkeypatch.setattr(module, "_join", interrupted)
    given: list[int] = []

    def source() -> Iterator[int]:
        for item in endless(ended):
            given.append(item)
            yield item

    assert Overlap([("keep", same), ("take", take)], capacity=2).run(source()) is False
    assert out == given, "something that was read did not come out"


def test_a_full_channel_that_may_drop_keeps_the_newest() -> None:
    dropped: list[int] = []
    channel = Channel(2, dropped.append)
    for item in range(5):
        channel.put(item)
    channel.end()
    assert dropped == [0, 1, 2]
    assert [channel.get(), channel.get(), channel.get()] == [3, 4, None]


def test_a_full_channel_that_may_not_drop_makes_the_source_wait() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    put = threading.Thread(target=channel.put, args=(1,), daemon=True)
    put.start()
    put.join(0.1)
    assert put.is_alive()
    assert channel.get() == 0
    put.join(20)
    assert not put.is_alive()


def test_giving_a_channel_up_wakes_whoever_waits() -> None:
    channel: Channel[int] = Channel(1)
    heard: list[str] = []

    def wait() -> None:
        try:
            channel.get()
        except Aborted:
            heard.append("aborted")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    channel.abort()
    waiting.join(20)
    assert heard == ["aborted"]
    with pytest.raises(Aborted):
        channel.put(1)


def test_a_slow_stage_drops_the_oldest_waiting_items_and_the_source_never_waits() -> None:
    seen: list[int] = []
    dropped: list[int] = []
    all_given, taken = threading.Event(), threading.Event()

    def slow(item: int) -> int:
        seen.append(item)
        taken.set()
        assert all_given.wait(20)  # would time out if the source had to wait for this stage
        return item

    def source() -> Iterator[int]:
        yield 0
        assert taken.wait(20)
        yield from range(1, 10)
        all_given.set()

    Overlap([("slow", slow)], dropped=dropped.append).run(source())
    assert seen == [0, 9]
    assert dropped == list(range(1, 9))


def test_a_second_interrupt_gives_up_what_waits_and_is_raised_when_no_thread_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck, release = threading.Event(), threading.Event()
    join, calls = module._join, []

    def interrupted(threads: list[threading.Thread]) -> None:
        calls.append(len(threads))
        if len(calls) <= 2:
            assert stuck.wait(20)
            raise KeyboardInterrupt
        release.set()
        join(threads)

    def block(item: int) -> int:
        stuck.set()
        assert release.wait(20)
        return item

    monkeypatch.setattr(module, "_join", interrupted)
    taken: list[int] = []
    stages = [("block", block), ("take", lambda item: taken.append(item) or item)]
    with pytest.raises(KeyboardInterrupt):
        Overlap(stages, capacity=1).run(endless(threading.Event()))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("video")]
    assert taken == []
