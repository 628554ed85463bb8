"""CUDA graphs of one stream: the same work at the same addresses, recorded once and launched as a whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack, suppress
from types import MappingProxyType

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.stream import Stream
from vitesse.errors import UsageError

# How many keys are remembered for each graph that is kept: those run once, and those that cannot be captured.
_REMEMBERED = 16


class GraphCache(Closing):
    """Runs work by key (the shapes of its tensors): plainly at first, then captured, then replayed.

    The first call of a key runs plainly, because libraries choose algorithms and allocate memory then, which no capture
    allows. The second captures and launches, later ones launch. The graphs least recently used are destroyed beyond
    `limit`. A key whose capture fails runs plainly from then on. One thread at a time.

    A graph holds addresses: call `invalidate` when any of them changed.

    Args:
        driver: captures and launches.
        stream: where the work is enqueued; it must outlive the cache.
        limit: how many graphs are kept, at least 1; each takes device memory, some 10 to 100 KiB per kernel.
    """

    def __init__(self, driver: Driver, stream: Stream, limit: int = 8) -> None:
        if limit < 1:
            raise UsageError(f"a cache of {limit} CUDA graphs", expected="1 or more")
        self._driver, self._stream, self._limit = driver, stream, limit
        self._graphs: OrderedDict[Hashable, int] = OrderedDict()
        self._warm: OrderedDict[Hashable, str] = OrderedDict()
        self._refused: OrderedDict[Hashable, str] = OrderedDict()
        self._closed = False
        self.captures = self.replays = self.evictions = 0

    @property
    def refused(self) -> Mapping[Hashable, str]:
        """Keys that could not be captured, and why."""
        return MappingProxyType(self._refused)

    def run(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Have the work of `key` done on the stream, by `enqueue` or by the graph captured from it.

        Args:
            key: whatever decides the work beside the addresses.
            enqueue: enqueues the work on the stream and does nothing else: it does not run when a graph does, and runs
                twice when its capture fails. It must not synchronise, allocate or copy from pageable memory.

        Raises:
            CudaError: CUDA refused, or the cache is closed.
            Exception: whatever `enqueue` raises when it runs plainly.
        """
        if self._closed:
            raise CudaError("this cache of CUDA graphs is closed", expected="an open one")
        if key in self._graphs:
            self._graphs.move_to_end(key)
            self._driver.launch(self._graphs[key], self._stream.handle)
            self.replays += 1
        elif key in self._refused:
            enqueue()
        elif key in self._warm:
            self._run_captured(key, enqueue)
        else:
            enqueue()
            self._remember(self._warm, key, "")

    def invalidate(self) -> None:
        """Destroy all graphs, because addresses changed; each key begins anew with a plain run."""
        self._warm.clear()
        self._destroy(len(self._graphs))

    def close(self) -> None:
        """Wait for the stream and destroy all graphs."""
        self._closed = True
        self.invalidate()

    def _run_captured(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        if len(self._graphs) >= self._limit:
            self.evictions += self._destroy(len(self._graphs) - self._limit + 1)
        del self._warm[key]
        graph = self._captured(key, enqueue)
        if graph is None:
            enqueue()
            return
        self._graphs[key] = graph
        self.captures += 1
        self._driver.launch(graph, self._stream.handle)

    def _captured(self, key: Hashable, enqueue: Callable[[], None]) -> int | None:
        """Capture, or remember why not; the stream captures no more when this returns or raises."""
        stream = self._stream.handle
        try:
            self._driver.begin_capture(stream)
        except CudaError as error:
            self._remember(self._refused, key, error.what)
            return None
        try:
            enqueue()
        except BaseException as error:
            # What was captured so far is of no use; CUDA may also have given it up already.
            with suppress(CudaError):
                self._driver.destroy_graph(self._driver.end_capture(stream))
            if not isinstance(error, Exception):
                raise
            # Whether capturing or the work itself was at fault shows when it runs plainly.
            self._remember(self._refused, key, error.what if isinstance(error, CudaError) else str(error))
            return None
        try:
            return self._driver.end_capture(stream)
        except CudaError as error:
            self._remember(self._refused, key, error.what)
            return None

    def _remember(self, where: OrderedDict[Hashable, str], key: Hashable, why: str) -> None:
        where[key] = why
        if len(where) > _REMEMBERED * self._limit:
            where.popitem(last=False)

    def _destroy(self, count: int) -> int:
        """Destroy the graphs least recently used, once none of them runs any more."""
        if not count:
            return 0
        graphs = [self._graphs.popitem(last=False)[1] for _ in range(count)]
        with ExitStack() as leaving:
            for graph in graphs:
                leaving.callback(self._driver.destroy_graph, graph)
            leaving.callback(self._stream.synchronize)
        return count
