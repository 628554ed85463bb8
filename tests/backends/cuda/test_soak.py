"""Two thousand rounds of changing sizes: what is held stays flat, and every value arrives."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from backends.cuda.fake_driver import FakeDriver
from vitesse.backends.cuda.buffers import Buffers
from vitesse.backends.cuda.driver import Driver
from vitesse.backends.cuda.graphs import GraphCache
from vitesse.backends.cuda.memory import Pool, block_size
from vitesse.backends.cuda.stream import Stream

ROUNDS, WARM, LARGEST = 2000, 500, 200_000
MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def one_session(driver: Driver, device: Pool, host: Pool, sizes: list[int], start: int) -> tuple[int, int]:
    """Send tensors of these sizes through a session; return how many graphs were captured and replayed."""
    placed: tuple[int, ...] = ()
    with (
        Stream(driver) as stream,
        Buffers(driver, stream, device=device, host=host) as buffers,
        GraphCache(driver, stream, limit=3) as graphs,
    ):
        for number, size in enumerate(sizes, start):
            sent = np.full(size, number % 251, np.uint8)
            source = buffers.upload("x", sent)
            buffers.reserve("y", size)
            if buffers.addresses() != placed:
                graphs.invalidate()
                placed = buffers.addresses()
            graphs.run(size, partial(driver.copy, buffers.device("y"), source, size, stream.handle))
            came = buffers.download("y", (size,), np.uint8)
            stream.synchronize()
            assert np.array_equal(came, sent), f"round {number}, {size} bytes"
        assert not graphs.refused
        return graphs.captures, graphs.replays


def test_memory_stays_flat_over_two_thousand_rounds(driver: Driver, device: Pool, host: Pool) -> None:
    chance = np.random.default_rng(5)
    free: list[int] = []
    resident: list[int] = []
    captures = replays = 0
    for start in range(0, ROUNDS, 20):
        sizes = [int(size) for size in chance.integers(1, LARGEST, 4)]
        captured, replayed = one_session(driver, device, host, [*sizes, *sizes[:2] * 4, *sizes * 2], start)
        captures, replays = captures + captured, replays + replayed
        assert device.in_use_bytes == host.in_use_bytes == 0
        for pool in (device, host):
            assert pool.held_bytes <= 2 * pool.peak_bytes <= 4 * block_size(LARGEST)
        if start >= WARM:
            free.append(driver.memory()[0])
            resident.append(resident_bytes())
    assert captures > 200 and replays > 400
    assert min(free) >= free[0] - 4 * MIB, f"device memory grew: {free}"
    # The fake keeps what was freed, to find who still uses it.
    if not isinstance(driver, FakeDriver):
        assert max(resident) <= resident[0] + 64 * MIB, f"host memory grew: {resident}"
