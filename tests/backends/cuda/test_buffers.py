"""Tensors go to the device and come back, stay where they are, and never change under somebody's hands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from backends.cuda.fake_driver import FakeDriver
from vitesse.backends.cuda.buffers import Buffers
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.cuda.stream import Stream


@pytest.fixture
def buffers(driver: Driver, stream: Stream, device: Pool, host: Pool) -> Iterator[Buffers]:
    with Buffers(driver, stream, device=device, host=host) as made:
        yield made


def copied(driver: Driver, stream: Stream, buffers: Buffers, source: str, to: str, size: int) -> None:
    """Stand in for a kernel: copy one tensor to another on the device."""
    buffers.reserve(to, size)
    driver.copy(buffers.device(to), buffers.device(source), size, stream.handle)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", "uint8", "int8"])
def test_what_goes_up_comes_back(driver: Driver, stream: Stream, buffers: Buffers, dtype: str) -> None:
    sent = np.random.default_rng(0).integers(0, 2, (2, 3, 5)).astype(dtype)
    address = buffers.upload("x", sent)
    assert address == buffers.device("x")
    copied(driver, stream, buffers, "x", "y", sent.nbytes)
    came = buffers.download("y", sent.shape, dtype)
    stream.synchronize()
    assert came.dtype == sent.dtype and np.array_equal(came, sent)


def test_without_waiting_the_values_are_not_there(fake: FakeDriver) -> None:
    with (
        Stream(fake) as stream,
        Pool(fake) as device,
        Pool(fake, host=True) as host,
        Buffers(fake, stream, device=device, host=host) as buffers,
    ):
        buffers.upload("x", np.ones(4, np.uint8))
        buffers.reserve("y", 4)
        copied(fake, stream, buffers, "x", "y", 4)
        came = buffers.download("y", (4,), np.uint8)
        assert (came == 0xCD).all()
        stream.synchronize()
        assert (came == 1).all()


def test_a_transposed_array_arrives_in_its_own_order(
    driver: Driver, stream: Stream, buffers: Buffers
) -> None:
    sent = np.arange(24, dtype=np.float32).reshape(4, 6).T
    buffers.upload("x", sent)
    copied(driver, stream, buffers, "x", "y", sent.nbytes)
    came = buffers.download("y", (6, 4), np.float32)
    stream.synchronize()
    assert np.array_equal(came, sent) and came.flags.c_contiguous


def test_the_callers_array_may_change_at_once(driver: Driver, stream: Stream, buffers: Buffers) -> None:
    sent = np.full(1000, 7, np.int32)
    buffers.upload("x", sent)
    sent[:] = 9
    copied(driver, stream, buffers, "x", "y", sent.nbytes)
    came = buffers.download("y", (1000,), np.int32)
    stream.synchronize()
    assert (came == 7).all()


def test_a_second_upload_does_not_overtake_the_first(
    driver: Driver, stream: Stream, buffers: Buffers
) -> None:
    buffers.reserve("first", 4_000_000)
    buffers.upload("x", np.full(1_000_000, 1, np.int32))
    driver.copy(buffers.device("first"), buffers.device("x"), 4_000_000, stream.handle)
    buffers.upload("x", np.full(1_000_000, 2, np.int32))
    came = buffers.download("first", (1_000_000,), np.int32)
    stream.synchronize()
    assert (came == 1).all()


def test_uploads_wait_only_where_they_must(fake: FakeDriver) -> None:
    with (
        Stream(fake) as stream,
        Pool(fake) as device,
        Pool(fake, host=True) as host,
        Buffers(fake, stream, device=device, host=host) as buffers,
    ):
        for _ in range(5):
            buffers.upload("x", np.ones(4, np.uint8))
            buffers.upload("y", np.ones(4, np.uint8))
            stream.synchronize()
        assert fake.waits == 5


def test_a_tensor_stays_where_it_is_as_long_as_it_fits(buffers: Buffers) -> None:
    buffers.reserve("x", 4000)
    buffers.reserve("y", 100)
    placed = buffers.addresses()
    assert len(set(placed)) == 4
    for size in (1, 10, 1000, 500):
        assert buffers.upload("x", np.zeros(size, np.float32)) == buffers.device("x")
        assert buffers.addresses() == placed
    assert buffers.growths == 0
    buffers.upload("x", np.zeros(5000, np.float32))
    assert buffers.addresses() != placed and buffers.growths == 1


def test_growing_waits_for_the_work_on_the_old_memory(fake: FakeDriver) -> None:
    """With the cap, the old memory is freed at once: a copy that were still waiting would be a misuse."""
    with (
        Stream(fake) as stream,
        Pool(fake, cap_bytes=6000) as device,
        Pool(fake, host=True) as host,
        Buffers(fake, stream, device=device, host=host) as buffers,
    ):
        buffers.upload("x", np.ones(4000, np.uint8))
        buffers.upload("x", np.ones(5000, np.uint8))
        stream.synchronize()
        assert fake.peek(buffers.device("x"), 5000) == b"\1" * 5000


def test_a_tensor_that_found_no_room_may_come_smaller(fake: FakeDriver) -> None:
    with (
        Stream(fake) as stream,
        Pool(fake) as device,
        Pool(fake, host=True, cap_bytes=2000) as host,
        Buffers(fake, stream, device=device, host=host) as buffers,
    ):
        buffers.reserve("x", 1000)
        with pytest.raises(CudaError, match="for x would pass the cap of 2,000 bytes"):
            buffers.reserve("x", 3000)
        assert device.in_use_bytes == host.in_use_bytes == 0
        buffers.reserve("x", 1500)
        assert host.in_use_bytes >= 1500


def test_an_output_somebody_holds_outlives_growing_and_closing(fake: FakeDriver) -> None:
    with Stream(fake) as stream, Pool(fake) as device:
        with Pool(fake, host=True) as host, Buffers(fake, stream, device=device, host=host) as buffers:
            buffers.upload("x", np.full(100, 5, np.uint8))
            before_growing = buffers.download("x", (100,), np.uint8)
            stream.synchronize()
            buffers.upload("x", np.full(2000, 6, np.uint8))
            before_closing = buffers.download("x", (10, 10), np.uint8)[2:3].T
            stream.synchronize()
        assert (before_growing == 5).all() and (before_closing == 6).all()
        assert fake.held()["host memory"] == 2
        del before_growing
        assert fake.held()["host memory"] == 1
        del before_closing
        assert "host memory" not in fake.held()


def test_memory_that_nobody_holds_goes_back_to_the_pools(fake: FakeDriver) -> None:
    with Stream(fake) as stream, Pool(fake) as device, Pool(fake, host=True) as host:
        first = Buffers(fake, stream, device=device, host=host)
        first.upload("x", np.zeros(100, np.uint8))
        first.download("x", (100,), np.uint8)
        first.close()
        first.close()
        assert device.in_use_bytes == host.in_use_bytes == 0
        assert device.held_bytes == host.held_bytes == 512
        second = Buffers(fake, stream, device=device, host=host)
        second.reserve("y", 400)
        assert fake.allocations == 2, "the next session takes what the first gave back"
        second.close()


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_scalars_and_empty_tensors_travel_too(
    driver: Driver, stream: Stream, buffers: Buffers, shape: tuple[int, ...]
) -> None:
    sent = np.full(shape, 3, np.float32)
    buffers.upload("x", sent)
    came = buffers.download("x", shape, np.float32)
    stream.synchronize()
    assert came.shape == shape and np.array_equal(came, sent)


def test_more_than_was_reserved_does_not_come_down(buffers: Buffers) -> None:
    buffers.reserve("x", 512)
    with pytest.raises(CudaError) as refused:
        buffers.download("x", (2, 100), np.float32)
    assert refused.value.what == "'x' of shape (2, 100) float32 takes 800 bytes"
    assert refused.value.expected == "at most the 512 bytes reserved"


def test_an_unknown_tensor_is_named_with_those_there_are(buffers: Buffers) -> None:
    with pytest.raises(CudaError, match="expected: one of: none is reserved"):
        buffers.device("x")
    buffers.reserve("images", 1)
    with pytest.raises(CudaError, match=r"no buffer is named 'x'\n  expected: one of: images"):
        buffers.download("x", (1,), np.uint8)
