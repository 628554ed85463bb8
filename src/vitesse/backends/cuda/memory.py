"""Blocks of device or page-locked host memory, reused: CUDA's own allocation waits for the whole device."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from threading import RLock

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.driver import CudaError, Driver

# A block is at most an eighth larger than what was asked for, or has the smallest size.
SMALLEST = 512
_STEPS = 8

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
_NAMED_HOLDERS = 5


@dataclass(frozen=True, eq=False)
class Block:
    """Memory that a pool lent once: its address and its size in bytes, which is at least what was asked for.

    The same memory lent again is another Block, so that one that was given back cannot be given again.
    """

    address: int
    size: int


def block_size(size: int) -> int:
    """Return the size of the block that holds `size` bytes.

    Sizes between two powers of two are rounded up to the next of eight equal steps, so that a block is less than
    1/8 larger than what was asked for; what is smaller than 512 bytes takes 512.
    """
    if size <= SMALLEST:
        return SMALLEST
    step = (1 << ((size - 1).bit_length() - 1)) // _STEPS
    return -(-size // step) * step


class Pool(Closing):
    """Lends blocks and keeps those that come back for the next taker of that size. Thread-safe.

    What lies idle is never more than the most that was in use at once: beyond that, the blocks that have lain longest
    are freed, so that a pool never holds more than twice its peak, whatever sizes come. A block that is given back must
    not be used by work that is still enqueued: synchronise the stream first.

    Args:
        driver: where the memory comes from.
        host: page-locked host memory instead of device memory.
        cap_bytes: the most that the pool may hold, idle blocks included; 0 for no cap.
    """

    def __init__(self, driver: Driver, *, host: bool = False, cap_bytes: int = 0) -> None:
        self._allocate, self._free = (
            (driver.malloc_host, driver.free_host) if host else (driver.malloc, driver.free)
        )
        self._kind = "page-locked host memory" if host else f"device memory of {driver.device.name}"
        self._cap = cap_bytes
        self._lent: dict[Block, str] = {}
        # Address and size, the longest idle first.
        self._idle: deque[tuple[int, int]] = deque()
        self._in_use = self._idle_bytes = self._peak = 0
        self._closed = False
        # Reentrant, because what holds it trims.
        self._lock = RLock()

    @property
    def in_use_bytes(self) -> int:
        """Bytes lent at present, as sizes of blocks."""
        return self._in_use

    @property
    def held_bytes(self) -> int:
        """Bytes taken from CUDA: lent or idle."""
        return self._in_use + self._idle_bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were lent at once."""
        return self._peak

    def take(self, size: int, *, owner: str = "") -> Block:
        """Lend a block of at least `size` bytes, whose contents are undefined; `owner` is named in messages.

        Raises:
            CudaError: the cap, or the memory that is left, does not hold it; says what is held by whom.
        """
        with self._lock:
            self._open()
            if size < 0:
                raise CudaError(f"a block of {size} bytes was asked for", expected="0 or more")
            wanted = block_size(size)
            idle = next((entry for entry in self._idle if entry[1] == wanted), None)
            if idle is not None:
                self._idle.remove(idle)
                self._idle_bytes -= wanted
            block = Block(idle[0] if idle else self._new(wanted, owner), wanted)
            self._lent[block] = owner
            self._in_use += wanted
            self._peak = max(self._peak, self._in_use)
            return block

    def give(self, block: Block) -> None:
        """Take a block back; raises CudaError for one that is not lent by this pool, as after a first `give`."""
        with self._lock:
            self._forget(block)
            self._idle.append((block.address, block.size))
            self._idle_bytes += block.size
            while self._idle_bytes > self._peak:
                self._free_oldest()

    def release(self, block: Block) -> None:
        """Leave a lent block to its holder, who frees it with the driver: the pool forgets it."""
        with self._lock:
            self._forget(block)

    def trim(self) -> None:
        """Give all idle blocks back to CUDA."""
        with self._lock:
            while self._idle:
                self._free_oldest()

    def close(self) -> None:
        """Free everything, also blocks that are still lent; raises an error after all were tried."""
        with self._lock:
            self._closed = True
            addresses = [*(address for address, _ in self._idle), *(block.address for block in self._lent)]
            self._idle.clear()
            self._lent.clear()
            self._in_use = self._idle_bytes = 0
            with ExitStack() as leaving:
                for address in addresses:
                    leaving.callback(self._free, address)

    def _open(self) -> None:
        if self._closed:
            raise CudaError(
                f"this pool of {self._kind} is closed",
                expected="an open one",
                cause="it was closed before what uses it",
                fix="close sessions and buffers first, then the pool",
            )

    def _forget(self, block: Block) -> None:
        self._open()
        if block not in self._lent:
            known = {address for address, _ in self._idle} | {lent.address for lent in self._lent}
            cause = "it was given back before" if block.address in known else "another pool lent it, or none"
            raise CudaError(
                f"a block of {block.size:,} bytes came back to a pool of {self._kind} that has not lent it",
                expected="each block once, to the pool that lent it",
                cause=cause,
            )
        del self._lent[block]
        self._in_use -= block.size

    def _free_oldest(self) -> None:
        address, size = self._idle.popleft()
        self._idle_bytes -= size
        self._free(address)

    def _new(self, size: int, owner: str) -> int:
        if self._cap and self.held_bytes + size > self._cap:
            while self._idle and self.held_bytes + size > self._cap:
                self._free_oldest()
            if self.held_bytes + size > self._cap:
                raise self._over_cap(size, owner)
        try:
            return self._allocate(size)
        except CudaError as error:
            if error.code != _OUT_OF_MEMORY:
                raise
        self.trim()
        try:
            return self._allocate(size)
        except CudaError as error:
            what = f"{error.what}{_for(owner)}; {self._holders()}"
            raise CudaError(what, code=error.code, cause=error.cause, fix=error.fix) from None

    def _over_cap(self, size: int, owner: str) -> CudaError:
        return CudaError(
            f"{size:,} bytes of {self._kind} more{_for(owner)} would pass the cap of {self._cap:,} bytes; "
            f"{self._holders()}",
            expected=f"at most {max(0, self._cap - self._in_use):,} bytes more",
            cause="larger inputs or more sessions than the cap was meant for",
            fix="a smaller batch, fewer streams, or a higher memory limit",
        )

    def _holders(self) -> str:
        """Say who holds how much, the largest first."""
        held: dict[str, int] = {}
        for block, owner in self._lent.items():
            held[owner or "unnamed"] = held.get(owner or "unnamed", 0) + block.size
        if not held:
            return "the pool has lent nothing"
        largest = sorted(held.items(), key=lambda item: -item[1])
        said = [f"{owner} {size:,}" for owner, size in largest[:_NAMED_HOLDERS]]
        rest = sum(size for _, size in largest[_NAMED_HOLDERS:])
        return f"held: {', '.join([*said, f'others {rest:,}'] if rest else said)} bytes"


def _for(owner: str) -> str:
    return f" for {owner}" if owner else ""
