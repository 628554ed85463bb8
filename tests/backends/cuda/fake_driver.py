"""A `Driver` without a GPU, stricter than one: work runs only when somebody waits for it, and misuse is an error.

Device memory is bytearrays behind made-up addresses that are never used twice. Page-locked memory is real memory,
because numpy reads it. Freed memory is overwritten and stays known, so that whoever still uses it is found.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from vitesse.backends.cuda.driver import CudaError, Device

FRESH, FREED = 0xCD, 0xDD
LEGACY, PER_THREAD = 1, 2
H100 = Device(0, "Fake H100", (9, 0), 1 << 30, (13, 0), (13, 0))


class Misuse(AssertionError):
    """What a real GPU would do in silence, or crash on."""


@dataclass
class Memory:
    address: int
    size: int
    host: bool
    freed: bool = False
    bytes: bytearray | ctypes.Array[ctypes.c_char] = field(default_factory=bytearray)

    def view(self) -> memoryview:
        return memoryview(self.bytes).cast("B")


@dataclass
class Work:
    """Something enqueued; `turn` is set once it ran."""

    act: Callable[[], None]
    graph: int = 0
    turn: int = 0
    done: bool = False


@dataclass
class Queue:
    waiting: deque[Work] = field(default_factory=deque)
    captured: list[Callable[[], None]] | None = None
    capturing_thread: int = 0
    broken: str = ""


class FakeDriver:
    """Keep it until the end of the test and call `check_clean`."""

    def __init__(self, device: Device = H100) -> None:
        self.device = device
        self.allocations = self.waits = 0
        self.misuses: list[str] = []
        self._addresses = count(0x7_0000_0000_0000, 1 << 32)
        self._handles = count(0x1000, 0x10)
        self._memory: dict[int, Memory] = {}
        self._streams = {LEGACY: Queue(), PER_THREAD: Queue()}
        self._events: dict[int, tuple[Work, int] | None] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._turns = count(1)
        self._lock = threading.RLock()

    # Memory

    def memory(self) -> tuple[int, int]:
        used = sum(memory.size for memory in self._memory.values() if not (memory.freed or memory.host))
        return self.device.memory_bytes - used, self.device.memory_bytes

    def malloc(self, size: int) -> int:
        self._forbidden_in_capture("cudaMalloc")
        if size > self.memory()[0]:
            raise CudaError(f"CUDA says out of memory on {size}", code="cudaErrorMemoryAllocation")
        memory = Memory(next(self._addresses), size, host=False, bytes=bytearray([FRESH]) * size)
        return self._keep(memory)

    def malloc_host(self, size: int) -> int:
        self._forbidden_in_capture("cudaMallocHost")
        real = ctypes.create_string_buffer(bytes([FRESH]) * size, size)
        return self._keep(Memory(ctypes.addressof(real), size, host=True, bytes=real))

    def _keep(self, memory: Memory) -> int:
        self.allocations += 1
        self._memory[memory.address] = memory
        return memory.address

    def free(self, address: int) -> None:
        self._free(address, host=False)

    def free_host(self, address: int) -> None:
        self._free(address, host=True)

    def _free(self, address: int, *, host: bool) -> None:
        self._forbidden_in_capture("cudaFree")
        memory = self._memory.get(address)
        if memory is None or memory.freed or memory.host != host:
            raise CudaError(
                f"CUDA says invalid argument on freeing {address:#x}", code="cudaErrorInvalidValue"
            )
        memory.freed = True
        memory.view()[:] = bytes([FREED]) * memory.size

    def poke(self, address: int, content: bytes) -> None:
        """Write device memory, as a kernel of the test."""
        self._part(address, len(content))[:] = content

    def peek(self, address: int, size: int) -> bytes:
        return bytes(self._part(address, size))

    def _part(self, address: int, size: int) -> memoryview:
        for memory in self._memory.values():
            if memory.address <= address < memory.address + memory.size:
                offset = address - memory.address
                if memory.freed:
                    raise self._misuse(f"{address:#x} was freed")
                if offset + size > memory.size:
                    raise self._misuse(f"{size} bytes at {address:#x} pass the end of {memory.size} bytes")
                return memory.view()[offset : offset + size]
        raise self._misuse(f"{address:#x} was never allocated")

    def _misuse(self, what: str) -> Misuse:
        self.misuses.append(what)
        return Misuse(what)

    # Streams

    def create_stream(self) -> int:
        handle = next(self._handles)
        self._streams[handle] = Queue()
        return handle

    def destroy_stream(self, stream: int) -> None:
        if self._queue(stream).waiting:
            raise self._misuse("a stream was destroyed with work on it")
        del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        queue = self._queue(stream)
        if queue.captured is not None:
            queue.broken = "cudaStreamSynchronize"
            raise CudaError("CUDA says no waiting in a capture", code="cudaErrorStreamCaptureUnsupported")
        self.waits += 1
        self._run(stream)

    def kernel(self, stream: int, act: Callable[[], None]) -> None:
        """Enqueue work of the test's own."""
        queue = self._queue(stream)
        if queue.captured is not None:
            queue.captured.append(act)
        else:
            queue.waiting.append(Work(act))

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._part(to, size), self._part(source, size)

        def act() -> None:
            self._part(to, size)[:] = self._part(source, size)

        self.kernel(stream, act)

    def _queue(self, stream: int) -> Queue:
        if stream not in self._streams:
            raise self._misuse(f"no stream {stream:#x}")
        return self._streams[stream]

    def _run(self, stream: int, until: Work | None = None) -> None:
        with self._lock:
            queue = self._streams[stream]
            while queue.waiting and not (until is not None and until.done):
                work = queue.waiting.popleft()
                work.act()
                work.turn, work.done = next(self._turns), True

    # Events

    def create_event(self) -> int:
        event = next(self._handles)
        self._events[event] = None
        return event

    def destroy_event(self, event: int) -> None:
        if event not in self._events:
            raise self._misuse(f"no event {event:#x}")
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        work = Work(lambda: None)
        self._queue(stream).waiting.append(work)
        self._events[event] = (work, stream)

    def wait(self, stream: int, event: int) -> None:
        recorded = self._events[event]
        if recorded is not None:
            work, source = recorded
            self.kernel(stream, lambda: self._run(source, until=work))

    def elapsed_ms(self, begin: int, end: int) -> float:
        """One millisecond for each thing that ran in between."""
        first, last = self._events[begin], self._events[end]
        if first is None or last is None or not (first[0].done and last[0].done):
            raise CudaError("CUDA says not ready", code="cudaErrorNotReady")
        return float(last[0].turn - first[0].turn - 1)

    # Graphs

    def begin_capture(self, stream: int) -> None:
        queue = self._queue(stream)
        if queue.captured is not None:
            raise CudaError("CUDA says it is capturing already", code="cudaErrorIllegalState")
        queue.captured, queue.capturing_thread, queue.broken = [], threading.get_ident(), ""

    def end_capture(self, stream: int) -> int:
        queue = self._queue(stream)
        if queue.captured is None:
            raise CudaError("CUDA says no capture is under way", code="cudaErrorIllegalState")
        if queue.capturing_thread != threading.get_ident():
            raise CudaError("CUDA says wrong thread", code="cudaErrorStreamCaptureWrongThread")
        acts, queue.captured = queue.captured, None
        if queue.broken:
            raise CudaError(
                f"CUDA says {queue.broken} broke the capture", code="cudaErrorStreamCaptureInvalidated"
            )
        graph = next(self._handles)
        self._graphs[graph] = acts
        return graph

    def launch(self, graph: int, stream: int) -> None:
        if graph not in self._graphs:
            raise self._misuse(f"no graph {graph:#x}")
        queue = self._queue(stream)
        if queue.captured is not None:
            queue.captured.extend(self._graphs[graph])
        else:
            queue.waiting.extend(Work(act, graph) for act in self._graphs[graph])

    def destroy_graph(self, graph: int) -> None:
        if graph not in self._graphs:
            raise self._misuse(f"no graph {graph:#x}")
        if any(work.graph == graph for queue in self._streams.values() for work in queue.waiting):
            raise self._misuse("a graph was destroyed while it ran")
        del self._graphs[graph]

    def capturing(self, stream: int) -> bool:
        return self._queue(stream).captured is not None

    def _forbidden_in_capture(self, call: str) -> None:
        """As CUDA in the thread-local mode: only the thread that captures may not."""
        for queue in self._streams.values():
            if queue.captured is not None and queue.capturing_thread == threading.get_ident():
                queue.broken = call
                raise CudaError(f"CUDA says no {call} in a capture", code="cudaErrorStreamCaptureUnsupported")

    # The end

    def held(self) -> dict[str, int]:
        """What is not given back, by kind."""
        found = {
            "device memory": sum(not (memory.freed or memory.host) for memory in self._memory.values()),
            "host memory": sum(memory.host and not memory.freed for memory in self._memory.values()),
            "streams": len(self._streams) - 2,
            "events": len(self._events),
            "graphs": len(self._graphs),
        }
        return {kind: number for kind, number in found.items() if number}

    def check_clean(self) -> None:
        assert not self.held(), f"not given back: {self.held()}"
        assert not self.misuses, f"misused: {self.misuses}"
