"""Work runs plainly, is captured, and is replayed; what cannot be captured runs all the same."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from backends.cuda.fake_driver import FakeDriver, Misuse
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.graphs import GraphCache
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.cuda.stream import Stream
from vitesse.errors import UsageError


class Work:
    """Counts how often it was enqueued and how often it ran."""

    def __init__(self, fake: FakeDriver, stream: Stream) -> None:
        self._fake, self._stream = fake, stream
        self.enqueued = self.ran = 0

    def __call__(self) -> None:
        self.enqueued += 1
        self._fake.kernel(self._stream.handle, self._run)

    def _run(self) -> None:
        self.ran += 1


def test_the_first_call_is_plain_the_second_captures_and_later_ones_replay(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        work = Work(fake, stream)
        for calls in range(1, 6):
            graphs.run("a", work)
            stream.synchronize()
            assert work.ran == calls, "each call does the work once"
            assert work.enqueued == min(calls, 2)
            assert fake.held().get("graphs", 0) == (calls > 1)
        assert (graphs.captures, graphs.replays, graphs.evictions) == (1, 3, 0)


def test_each_key_has_its_own_graph(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        works = {key: Work(fake, stream) for key in "ab"}
        for key in "abababb":
            graphs.run(key, works[key])
        stream.synchronize()
        assert (works["a"].ran, works["b"].ran) == (3, 4)


def test_the_graph_least_recently_used_goes_first(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream, limit=2) as graphs:
        works = {key: Work(fake, stream) for key in "abc"}
        for key in "aabba":
            graphs.run(key, works[key])
        assert fake.held()["graphs"] == 2 and graphs.evictions == 0
        for key in "cc":
            graphs.run(key, works[key])
        assert fake.held()["graphs"] == 2 and graphs.evictions == 1
        replays = graphs.replays
        graphs.run("a", works["a"])
        assert graphs.replays == replays + 1, "a was used later than b and stays"
        graphs.run("b", works["b"])
        assert graphs.replays == replays + 1, "b was evicted and runs plainly"
        stream.synchronize()
        assert [works[key].ran for key in "abc"] == [4, 3, 2]


def test_addresses_that_changed_need_new_graphs(fake: FakeDriver) -> None:
    with Stream(fake) as stream, Pool(fake) as pool, GraphCache(fake, stream) as graphs:
        old, to = pool.take(8), pool.take(8)
        place = [old.address]

        def enqueue() -> None:
            fake.copy(to.address, place[0], 8, stream.handle)

        for _ in range(3):
            graphs.run("a", enqueue)
        stream.synchronize()
        place[0] = pool.take(8).address
        fake.poke(place[0], b"newplace")
        graphs.invalidate()
        for _ in range(3):
            fake.poke(to.address, b"nothing ")
            graphs.run("a", enqueue)
            stream.synchronize()
            assert fake.peek(to.address, 8) == b"newplace"
        assert (graphs.captures, graphs.replays) == (2, 2)


def test_after_addresses_changed_a_key_that_had_run_runs_plainly_again(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        graphs.run("a", lambda: None)
        graphs.invalidate()
        graphs.run("a", lambda: None)
        assert graphs.captures == 0
        graphs.run("a", lambda: None)
        assert graphs.captures == 1


@pytest.mark.parametrize("end", ["invalidated", "evicted", "closed"])
def test_a_graph_that_still_runs_is_waited_for_before_it_goes(fake: FakeDriver, end: str) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream, limit=1) as graphs:
        work = Work(fake, stream)
        for key in "baaa":
            graphs.run(key, work)
        assert work.ran == 0, "nobody has waited"
        if end == "evicted":
            graphs.run("b", work)
        else:
            (graphs.invalidate if end == "invalidated" else graphs.close)()
        assert work.ran == 4 and fake.held().get("graphs", 0) == (end == "evicted")


def test_the_fake_finds_a_graph_that_reads_freed_memory() -> None:
    fake = FakeDriver()
    stream = Stream(fake)
    source, to = fake.malloc(8), fake.malloc(8)
    graphs = GraphCache(fake, stream)
    for _ in range(2):
        graphs.run("a", lambda: fake.copy(to, source, 8, stream.handle))
    stream.synchronize()
    fake.free(source)
    graphs.run("a", lambda: None)
    with pytest.raises(Misuse, match="was freed"):
        stream.synchronize()


@pytest.mark.parametrize(
    "call", ["malloc", "malloc_host", "synchronize"], ids=["cudaMalloc", "cudaMallocHost", "synchronise"]
)
def test_what_forbids_capturing_is_remembered_and_the_work_runs_plainly(fake: FakeDriver, call: str) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        work, made = Work(fake, stream), []

        def enqueue() -> None:
            work()
            made.append(getattr(fake, call)(stream.handle if call == "synchronize" else 16))

        for calls in range(1, 5):
            graphs.run("a", enqueue)
            assert not fake.capturing(stream.handle)
            stream.synchronize()
            assert work.ran == calls
        assert work.enqueued == 5, "one of them into the capture that failed"
        assert list(graphs.refused) == ["a"] and graphs.refused["a"].startswith("CUDA says no ")
        assert graphs.captures == 0
        for address in made:
            if call != "synchronize":
                (fake.free if call == "malloc" else fake.free_host)(address)


def test_a_capture_that_breaks_at_its_end_is_remembered_too(fake: FakeDriver) -> None:
    """A library may swallow the error of the call that broke the capture."""
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        work, waits = Work(fake, stream), []

        def enqueue() -> None:
            work()
            try:
                fake.synchronize(stream.handle)
            except CudaError as error:
                waits.append(error.code)

        for _ in range(3):
            graphs.run("a", enqueue)
        stream.synchronize()
        assert work.ran == 3 and waits == ["cudaErrorStreamCaptureUnsupported"]
        assert graphs.refused["a"] == "CUDA says cudaStreamSynchronize broke the capture"


def test_a_stream_that_cannot_begin_to_capture_runs_plainly(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise CudaError("CUDA says not now", code="cudaErrorStreamCaptureUnsupported")

    monkeypatch.setattr(fake, "begin_capture", refuse)
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        work = Work(fake, stream)
        for _ in range(3):
            graphs.run("a", work)
        stream.synchronize()
        assert work.ran == 3 and graphs.refused == {"a": "CUDA says not now"}


def test_work_that_fails_raises_its_own_error_and_leaves_the_stream_usable(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:
        work = Work(fake, stream)

        def fails() -> None:
            work()
            raise ValueError("the runtime refuses")

        graphs.run("a", work)
        with pytest.raises(ValueError, match="the runtime refuses"):
            graphs.run("a", fails)
        assert not fake.capturing(stream.handle) and not fake.held().get("graphs")
        graphs.run("b", work)
        graphs.run("b", work)
        assert graphs.captures == 1 and graphs.refused == {"a": "the runtime refuses"}


def test_an_interrupt_in_a_capture_ends_it_and_goes_on_up(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream) as graphs:

        def interrupted() -> None:
            raise KeyboardInterrupt

        graphs.run("a", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            graphs.run("a", interrupted)
        assert not fake.capturing(stream.handle) and not graphs.refused


def test_many_keys_are_not_all_remembered(fake: FakeDriver) -> None:
    with Stream(fake) as stream, GraphCache(fake, stream, limit=1) as graphs:
        for key in range(40):
            graphs.run(key, lambda: None)
        graphs.run(39, lambda: None)
        assert graphs.captures == 1
        graphs.run(0, lambda: None)
        assert graphs.captures == 1, "the first key was forgotten"


def test_a_closed_cache_says_so_and_holds_nothing(fake: FakeDriver) -> None:
    with Stream(fake) as stream:
        graphs = GraphCache(fake, stream)
        for _ in range(2):
            graphs.run("a", lambda: None)
        graphs.close()
        graphs.close()
        assert "graphs" not in fake.held()
        with pytest.raises(CudaError, match="this cache of CUDA graphs is closed"):
            graphs.run("a", lambda: None)


def test_a_cache_for_no_graph_is_refused(fake: FakeDriver) -> None:
    with Stream(fake) as stream, pytest.raises(UsageError, match="a cache of 0 CUDA graphs"):
        GraphCache(fake, stream, limit=0)


def test_a_graph_of_copies_reads_what_lies_there_when_it_runs(
    driver: Driver, stream: Stream, device: Pool, host: Pool
) -> None:
    source, middle, to = host.take(4096), device.take(4096), host.take(4096)
    read = np.frombuffer((ctypes.c_uint8 * 4096).from_address(to.address), np.uint8)
    write = np.frombuffer((ctypes.c_uint8 * 4096).from_address(source.address), np.uint8)

    def enqueue() -> None:
        driver.copy(middle.address, source.address, 4096, stream.handle)
        driver.copy(to.address, middle.address, 4096, stream.handle)

    with GraphCache(driver, stream) as graphs:
        for value in range(1, 8):
            write[:] = value
            graphs.run("copies", enqueue)
            stream.synchronize()
            assert (read == value).all()
        assert (graphs.captures, graphs.replays, dict(graphs.refused)) == (1, 5, {})


@pytest.mark.parametrize("forbidden", ["malloc", "synchronize"])
def test_work_that_cannot_be_captured_is_done_all_the_same(
    driver: Driver, stream: Stream, device: Pool, host: Pool, forbidden: str
) -> None:
    source, middle, to = host.take(4096), device.take(4096), host.take(4096)
    read, write = (
        np.frombuffer((ctypes.c_uint8 * 4096).from_address(block.address), np.uint8) for block in (to, source)
    )
    made: list[int] = []

    def enqueue() -> None:
        driver.copy(middle.address, source.address, 4096, stream.handle)
        if forbidden == "malloc":
            made.append(driver.malloc(4096))
        else:
            driver.synchronize(stream.handle)
        driver.copy(to.address, middle.address, 4096, stream.handle)

    with GraphCache(driver, stream) as graphs:
        for value in range(1, 6):
            write[:] = value
            graphs.run("a", enqueue)
            stream.synchronize()
            assert (read == value).all()
        assert graphs.captures == 0 and list(graphs.refused) == ["a"]
    for address in made:
        driver.free(address)
