"""How long a step takes with each of its candidates: CUDA graphs of several calls, interleaved in rounds.

Before every call the L2 cache is overwritten and the activations are read again, because in a plan the weights come
from memory and the activations were written a moment ago. What that itself takes is measured in the same rounds and
subtracted.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.turns import turn

Call = Callable[[], object]
Result = TypeVar("Result")

# More than the L2 cache of any data-centre GPU to date (H100: 50 MB, B200: 126 MB).
FLUSHED_BYTES = 192 * 2**20
# An activation of more than this is not in the cache any more when it is read.
_WARM_BYTES = 24 * 2**20
_REPEATS = 8
_QUICK_ROUNDS, _LEAST_ROUNDS, _MOST_ROUNDS = 3, 5, 25
# Who is slower than this in the quick rounds does not come into the final ones.
_HOPELESS = 1.3
_FINALISTS = 5


def microseconds(
    calls: Sequence[Call], warm: Sequence[Tensor], device: torch.device, seconds: float = 0.2
) -> list[float]:
    """Return the median microseconds of each call; infinity where it cannot be captured in a CUDA graph.

    Args:
        calls: each has run once already: compiled, and right.
        warm: the activations, which the step before has just written.
        seconds: for the final rounds; a few are made in any case.
    """
    if device.type != "cuda":
        return _on_cpu(calls)
    with torch.cuda.device(device), turn(device):
        return _Rounds(calls, warm, device).medians(seconds)


class _Rounds:
    """The graphs of one step's candidates, with one that holds nothing but flushing and warming."""

    def __init__(self, calls: Sequence[Call], warm: Sequence[Tensor], device: torch.device) -> None:
        self._stream = stream_on(device)
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)
        self._warm = [(torch.empty_like(x), x) for x in warm if x.numel() * x.element_size() <= _WARM_BYTES]
        pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(device)
        self._empty = self._graph(lambda: None, pool)
        self._graphs = [self._captured(call, pool) for call in calls]

    def medians(self, seconds: float) -> list[float]:
        living = [number for number, graph in enumerate(self._graphs) if graph is not None]
        samples: dict[int, list[float]] = {number: [] for number in living}
        self._rounds(living, samples, _QUICK_ROUNDS)
        if len(living) > 1:
            ranked = sorted(living, key=lambda number: statistics.median(samples[number]))
            limit = statistics.median(samples[ranked[0]]) * _HOPELESS
            final = [number for number in ranked[:_FINALISTS] if statistics.median(samples[number]) <= limit]
            for number in final:
                samples[number].clear()
            end = perf_counter() + seconds
            self._rounds(final, samples, _LEAST_ROUNDS)
            while perf_counter() < end and len(samples[final[0]]) < _MOST_ROUNDS:
                self._rounds(final, samples, 1)
        return [
            statistics.median(samples[number]) if number in samples else float("inf")
            for number in range(len(self._graphs))
        ]

    def _rounds(self, living: Sequence[int], samples: dict[int, list[float]], count: int) -> None:
        for _ in range(count):
            idle = self._time(self._empty)
            for number in living:
                graph = self._graphs[number]
                assert graph is not None
                samples[number].append(max(self._time(graph) - idle, 0.01))

    def _time(self, graph: torch.cuda.CUDAGraph) -> float:
        begin, end = event(), event()
        with torch.cuda.stream(self._stream):
            begin.record()
            graph.replay()
            end.record()
        end.synchronize()
        return milliseconds(begin, end) * 1e3 / _REPEATS

    def _captured(self, call: Call, pool: Any) -> torch.cuda.CUDAGraph | None:
        try:
            return self._graph(call, pool)
        except RuntimeError:  # it synchronises or reads back: no plan can hold it
            torch.cuda.synchronize()
            return None

    def _graph(self, call: Call, pool: Any) -> torch.cuda.CUDAGraph:
        def repeated() -> None:
            for _ in range(_REPEATS):
                self._flushed.zero_()
                for spare, x in self._warm:
                    spare.copy_(x)
                call()

        return capture(repeated, self._stream, pool)[0]


def capture(
    work: Callable[[], Result], stream: torch.cuda.Stream, pool: Any
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture what `work` enqueues as a CUDA graph, and return the graph and what `work` returned.

    Captured in thread-local mode, so that other threads of the process may go on using CUDA. No garbage is collected
    meanwhile: a CUDA object that is destroyed by the capturing thread would break the capture.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), _no_collection():
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            made = work()
            graph.capture_end()
        except BaseException:
            _abandon(graph)
            raise
    return graph, made


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """End a capture that failed. Torch's random generators stay in capture until one has ended well."""
    with suppress(RuntimeError):
        graph.capture_end()
    after = torch.cuda.CUDAGraph()
    after.capture_begin(capture_error_mode="thread_local")
    torch.zeros(1, device="cuda")
    after.capture_end()


def stream_on(device: torch.device) -> torch.cuda.Stream:
    """Return a new stream of a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def event() -> torch.cuda.Event:
    """Return an event that takes the time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def milliseconds(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    """Return the time between two recorded events that the GPU has passed."""
    return float(begin.elapsed_time(end))


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _on_cpu(calls: Sequence[Call]) -> list[float]:
    return [_least_on_cpu(call) for call in calls]


def _least_on_cpu(call: Call) -> float:
    taken = []
    for _ in range(_QUICK_ROUNDS):
        start = perf_counter()
        call()
        taken.append((perf_counter() - start) * 1e6)
    return min(taken)
