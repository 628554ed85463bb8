"""The few calls of the CUDA runtime that are used, as an interface: `bindings.py` is the real one, tests bring a fake.

Pointers and handles are plain ints. Every call raises `CudaError` with CUDA's name of the error and what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vitesse.errors import BackendError


class CudaError(BackendError):
    """A CUDA call failed; `code` is CUDA's name of the error, such as cudaErrorMemoryAllocation."""

    def __init__(
        self, what: str, *, code: str = "", expected: str = "", cause: str = "", fix: str = ""
    ) -> None:
        super().__init__(what, expected=expected, cause=cause, fix=fix)
        self.code = code


@dataclass(frozen=True)
class Device:
    """A GPU: its number, name, compute capability (major, minor), memory in bytes, and the versions (major, minor)."""

    number: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    driver_version: tuple[int, int]
    runtime_version: tuple[int, int]


class Driver(Protocol):
    """What the rest of this package asks of CUDA. One driver serves one device; any thread may call it."""

    device: Device

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes of the device."""
        ...

    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the device and return the address."""
        ...

    def free(self, address: int) -> None:
        """Free what `malloc` returned."""
        ...

    def malloc_host(self, size: int) -> int:
        """Allocate `size` bytes of page-locked host memory and return the address."""
        ...

    def free_host(self, address: int) -> None:
        """Free what `malloc_host` returned."""
        ...

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy of `size` bytes, whichever side each address is on."""
        ...

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until everything enqueued on the stream is done; other Python threads go on meanwhile."""
        ...

    def create_event(self) -> int:
        """Return a new event that can be timed."""
        ...

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Enqueue the event."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait for the event."""
        ...

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Return milliseconds between two recorded events that are done."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Begin to record what is enqueued on the stream, by this thread, instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """End the capture and return the graph, ready to launch; raises CudaError where something forbade capturing."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a captured graph."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Destroy a captured graph."""
        ...
