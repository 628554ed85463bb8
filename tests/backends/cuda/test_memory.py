"""Pools lend blocks, keep what comes back within bounds, and say who holds what when there is no more."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator

import pytest

from backends.cuda.fake_driver import FakeDriver
from vitesse.backends.cuda.driver import CudaError, Device, Driver
from vitesse.backends.cuda.memory import SMALLEST, Block, Pool, block_size

MIB = 1 << 20


def small_gpu(size: int) -> FakeDriver:
    return FakeDriver(Device(0, "Tiny", (9, 0), size, (13, 0), (13, 0)))


def test_a_block_is_less_than_an_eighth_larger_than_what_was_asked_for() -> None:
    sizes = [*range(70_000), *(random.Random(1).randrange(1 << 36) for _ in range(20_000))]
    for size in sizes:
        block = block_size(size)
        assert block >= size and block >= SMALLEST
        assert block == SMALLEST or 8 * (block - size) < size, (size, block)


def test_the_size_of_a_block_is_the_size_of_its_own_block() -> None:
    for size in (0, 1, 512, 513, 4095, 4096, 4097, 999_999, 1 << 33):
        assert block_size(block_size(size)) == block_size(size)


def test_a_doubling_has_eight_sizes() -> None:
    assert len({block_size(size) for size in range(4097, 8193)}) == 8


def test_a_block_that_came_back_is_lent_again_without_asking_cuda(fake: FakeDriver) -> None:
    with Pool(fake) as pool:
        first = pool.take(1000)
        pool.give(first)
        second = pool.take(1010)
        assert second.address == first.address and fake.allocations == 1
        assert (pool.in_use_bytes, pool.held_bytes, pool.peak_bytes) == (1024, 1024, 1024)
        third = pool.take(1000)
        assert third.address != second.address and fake.allocations == 2
        assert pool.peak_bytes == 2048


def test_a_pool_never_holds_more_than_twice_the_most_that_was_in_use(fake: FakeDriver) -> None:
    chance = random.Random(7)
    with Pool(fake) as pool:
        lent: list[Block] = []
        for _ in range(3000):
            if lent and chance.random() < 0.5:
                pool.give(lent.pop(chance.randrange(len(lent))))
            else:
                lent.append(pool.take(chance.randrange(1, 200_000)))
                if len(lent) > 4:
                    pool.give(lent.pop(0))
            assert pool.in_use_bytes == sum(block.size for block in lent)
            assert pool.held_bytes <= 2 * pool.peak_bytes
            free, total = fake.memory()
            assert total - free == pool.held_bytes
        assert fake.allocations < 2500, "nothing is reused"


def test_trimming_gives_back_what_is_idle_and_nothing_else(fake: FakeDriver) -> None:
    with Pool(fake) as pool:
        kept, idle = pool.take(1000), pool.take(5000)
        pool.give(idle)
        pool.trim()
        assert pool.held_bytes == pool.in_use_bytes == kept.size
        assert fake.peek(kept.address, 1) == b"\xcd"


def test_closing_frees_everything_once_also_what_is_lent() -> None:
    fake = FakeDriver()
    pool = Pool(fake, host=True)
    pool.take(10)
    pool.give(pool.take(9000))
    assert fake.held() == {"host memory": 2}
    pool.close()
    pool.close()
    fake.check_clean()


def test_what_a_holder_was_left_is_freed_by_the_holder(fake: FakeDriver) -> None:
    pool = Pool(fake, host=True)
    block = pool.take(10)
    pool.release(block)
    assert pool.held_bytes == 0
    pool.close()
    assert fake.held() == {"host memory": 1}
    fake.free_host(block.address)


@pytest.mark.parametrize("times_lent", [1, 2])
def test_a_block_is_given_back_once_also_where_its_memory_was_lent_again(
    fake: FakeDriver, times_lent: int
) -> None:
    with Pool(fake) as pool:
        block = pool.take(100)
        pool.give(block)
        if times_lent == 2:
            pool.take(100)
        with pytest.raises(CudaError) as refused:
            pool.give(block)
        assert refused.value.what == (
            "a block of 512 bytes came back to a pool of device memory of Fake H100 that has not lent it"
        )
        assert refused.value.cause == "it was given back before"
        assert pool.in_use_bytes == 512 * (times_lent - 1)


def test_a_block_of_another_pool_is_refused(fake: FakeDriver) -> None:
    with Pool(fake) as pool, Pool(fake, host=True) as other:
        block = other.take(100)
        with pytest.raises(CudaError, match="another pool lent it, or none"):
            pool.give(block)
        with pytest.raises(CudaError, match="has not lent it"):
            pool.release(Block(block.address, block.size))


def test_a_closed_pool_says_so(fake: FakeDriver) -> None:
    pool = Pool(fake)
    block = pool.take(1)
    pool.close()
    for use in (lambda: pool.take(1), lambda: pool.give(block), lambda: pool.release(block)):
        with pytest.raises(CudaError) as refused:
            use()
        assert str(refused.value) == (
            "this pool of device memory of Fake H100 is closed\n"
            "  expected: an open one\n"
            "  likely cause: it was closed before what uses it\n"
            "  next step: close sessions and buffers first, then the pool"
        )


def test_a_negative_size_is_refused(fake: FakeDriver) -> None:
    with Pool(fake) as pool, pytest.raises(CudaError, match="a block of -1 bytes was asked for"):
        pool.take(-1)


def test_the_cap_says_who_holds_what_and_what_to_do(fake: FakeDriver) -> None:
    with Pool(fake, cap_bytes=10_000) as pool:
        pool.take(4096, owner="images")
        pool.take(4096, owner="boxes")
        pool.take(512, owner="boxes")
        with pytest.raises(CudaError) as refused:
            pool.take(2000, owner="logits")
    assert str(refused.value) == (
        "2,048 bytes of device memory of Fake H100 more for logits would pass the cap of 10,000 bytes; "
        "held: boxes 4,608, images 4,096 bytes\n"
        "  expected: at most 1,296 bytes more\n"
        "  likely cause: larger inputs or more sessions than the cap was meant for\n"
        "  next step: a smaller batch, fewer streams, or a higher memory limit"
    )
    assert refused.value.code == ""


def test_idle_blocks_make_room_below_the_cap(fake: FakeDriver) -> None:
    with Pool(fake, cap_bytes=10_000) as pool:
        pool.give(pool.take(8000))
        assert pool.take(7000).size <= 10_000
        assert pool.held_bytes <= 10_000


def test_out_of_memory_trims_and_tries_once_more() -> None:
    fake = small_gpu(MIB)
    with Pool(fake) as pool:
        pool.give(pool.take(900_000))
        assert pool.take(600_000).size >= 600_000
    fake.check_clean()


def test_out_of_memory_that_trimming_does_not_mend_keeps_cudas_name_and_says_who_holds_what() -> None:
    fake = small_gpu(MIB)
    with Pool(fake) as pool:
        for name in ("a", "b", "c", "d", "e", "f", "g"):
            pool.take(100_000, owner=name)
        with pytest.raises(CudaError) as refused:
            pool.take(600_000, owner="images")
        assert refused.value.code == "cudaErrorMemoryAllocation"
        size = block_size(100_000)
        assert refused.value.what.endswith(
            f"for images; held: {', '.join(f'{name} {size:,}' for name in 'abcde')}, others {2 * size:,} bytes"
        )
        assert pool.in_use_bytes == 7 * size, "a refused block is not counted"
    fake.check_clean()


def test_another_error_of_cuda_is_not_tried_again(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(size: int) -> int:
        calls.append(size)
        raise CudaError("CUDA says no", code="cudaErrorIllegalAddress")

    monkeypatch.setattr(fake, "malloc", broken)
    with Pool(fake) as pool, pytest.raises(CudaError, match="CUDA says no"):
        pool.take(1)
    assert calls == [512]


@pytest.fixture
def _threads_alternate_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_alternate_all_the_time")
def test_threads_never_get_the_same_block(driver: Driver) -> None:
    problems: list[str] = []
    with Pool(driver) as pool:
        taken: set[int] = set()
        lock = threading.Lock()

        def work(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in range(300):
                    block = pool.take(chance.randrange(1, 1000))
                    with lock:
                        if block.address in taken:
                            problems.append(f"{block} is lent twice")
                        taken.add(block.address)
                    with lock:
                        taken.discard(block.address)
                    pool.give(block)
            except Exception as error:
                problems.append(repr(error))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems and pool.in_use_bytes == 0
