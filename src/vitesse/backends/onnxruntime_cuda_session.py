"""One stream of ONNX Runtime's CUDA provider: buffers, bindings by shape, CUDA graphs.

ONNX Runtime captures the graphs itself (one for each `gpu_graph_id`), because it knows which of its buffers a captured
copy reads; it cannot drop one, so that a session captures a bounded number and runs other shapes as they come. It
keeps graphs and library handles for each thread, so that a thread's first call is slow: warm a session up on the
thread that will use it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.arrays import DeviceArray, device_array
from vitesse.backends.cuda.buffers import Buffers
from vitesse.backends.cuda.captures import TURNS
from vitesse.backends.cuda.driver import Driver
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.cuda.stream import Stream
from vitesse.backends.feeds import check_feeds
from vitesse.backends.onnxruntime_files import refused
from vitesse.backends.protocol import Array, Outcome, TensorInfo, Tensors
from vitesse.errors import BackendError

# Shapes that a session captures as CUDA graphs; others run without.
MOST_GRAPHS = 16
# Shapes whose bindings are kept; free image sizes stay bounded.
_MOST_SHAPES = 64
_NO_GRAPH = "-1"

# Shape and device address of each input, in the graph's order.
Placed = tuple[tuple[tuple[int, ...], int], ...]
Result = TypeVar("Result")


class Opener(Protocol):
    """What a session needs of its engine."""

    path: Path
    driver: Driver
    device_pool: Pool
    host_pool: Pool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    # An operator that makes the outputs as long as the values say; "" where shapes follow from shapes.
    values_decide: str

    def open(self, stream: int) -> tuple[Any, str]:
        """Return an `InferenceSession` on a stream, and why it captures no CUDA graphs ("" where it does)."""
        ...

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        ...


@dataclass(frozen=True)
class _Ready:
    """What a call of known shapes and addresses needs; `graph` is the number of its CUDA graph."""

    binding: Any
    outputs: Mapping[str, tuple[int, ...]]
    graph: str
    options: Any


class OnnxRuntimeCudaSession(Closing):
    """One stream with its buffers, arena and CUDA graphs. Not thread-safe; fastest on one thread all its life.

    Attributes:
        runtime: the `onnxruntime.InferenceSession`.
        without_graph: why calls are not replayed as CUDA graphs; "" where they are.
    """

    def __init__(self, engine: Opener) -> None:
        self._engine, self._open = engine, True
        self.runtime: Any = None
        self._ready: dict[Hashable, _Ready] = {}
        self._shapes: dict[tuple[tuple[int, ...], ...], Mapping[str, tuple[int, ...]]] = {}
        self._graphs: dict[Hashable, int] = {}
        self._thread = threading.local()
        # What `run_on_device` reads, kept from being freed until the next run.
        self._feeding: Mapping[str, DeviceArray] = {}
        with TURNS.using(), ExitStack() as made:
            self._stream = made.enter_context(Stream(engine.driver))
            self._buffers = made.enter_context(
                Buffers(engine.driver, self._stream, device=engine.device_pool, host=engine.host_pool)
            )
            made.callback(self._let_go)
            self.runtime, self.without_graph = engine.open(self._stream.handle)
            self._timer = self._stream.timer()
            # Done first at the end: graphs must not go while work of `run_on_device` still runs.
            made.callback(self._stream.synchronize)
            self._held = made.pop_all()

    @property
    def graphs(self) -> int:
        """How many shapes (at their addresses) are replayed as CUDA graphs."""
        return len(self._graphs)

    def run(self, feeds: Tensors) -> Outcome:
        """Run once; `host_ms` spans everything from the caller's arrays to numpy outputs, `device_ms` the kernels.

        The first call of a shape takes longer: kernels are chosen, and its graph is captured.

        Raises:
            DataError: names, dtypes or shapes do not fit the graph.
            BackendError: the runtime refuses, memory does not suffice, or the session or its engine is closed.
        """
        engine = self._opened()
        start = perf_counter_ns()
        check_feeds(feeds, engine.inputs)

        def placed() -> Placed:
            arrays = ((info.name, feeds[info.name]) for info in engine.inputs)
            return tuple((array.shape, self._buffers.upload(name, array)) for name, array in arrays)

        def copied(ready: _Ready) -> Outcome:
            outputs = {
                info.name: self._buffers.download(info.name, ready.outputs[info.name], info.dtype)
                for info in engine.outputs
            }
            self._stream.synchronize()
            return Outcome(outputs, (perf_counter_ns() - start) / 1e6, self._timer.ms())

        if not engine.values_decide:
            return self._done(engine, placed, copied)
        with TURNS.using():
            outputs = self._run_unbound(engine, placed())
            return Outcome(outputs, (perf_counter_ns() - start) / 1e6, self._timer.ms())

    def run_on_device(self, feeds: Mapping[str, object]) -> Mapping[str, DeviceArray]:
        """Run on arrays of torch, CuPy, JAX… that are on the GPU, in place; the outputs stay there.

        Returns at once: a consumer waits for the stream, as both protocols of `DeviceArray` have it do, or calls
        `synchronize`. The inputs must stay as they are until then, and the outputs are overwritten by the session's
        next run. Inputs that stay at one address are replayed as a CUDA graph.

        Raises:
            DataError, BackendError: as `run`; CudaError for an array on the host or another GPU.
        """
        engine = self._opened()
        if engine.values_decide:
            raise BackendError(
                f"the outputs of {engine.path} have no size before they are there",
                expected="outputs whose shapes follow from the inputs' shapes",
                cause=f"the graph has a {engine.values_decide}",
                fix="session.run(feeds), which copies them to numpy",
            )
        stream = self._stream.handle
        with TURNS.using():  # a producer enqueues waiting
            arrays = {
                name: device_array(value, engine.driver, stream=stream) for name, value in feeds.items()
            }
        check_feeds(arrays, engine.inputs)
        self._feeding = arrays

        def placed() -> Placed:
            for array in arrays.values():
                array.wait_on(engine.driver, stream)
            return tuple((arrays[info.name].shape, arrays[info.name].address) for info in engine.inputs)

        def left(ready: _Ready) -> Mapping[str, DeviceArray]:
            return {
                info.name: DeviceArray(
                    self._buffers.device(info.name),
                    ready.outputs[info.name],
                    np.dtype(info.dtype),
                    stream,
                    engine.driver.device.number,
                    self,
                    engine.driver,
                )
                for info in engine.outputs
            }

        return self._done(engine, placed, left)

    def synchronize(self) -> None:
        """Wait for what was enqueued; raises BackendError once the session or its engine is closed."""
        self._opened()
        with TURNS.using():
            self._stream.synchronize()

    def _opened(self) -> Opener:
        self._engine.check_open()
        if not self._open:
            raise BackendError("this session is closed", expected="an open one", fix="engine.session()")
        return self._engine

    def _done(
        self, engine: Opener, place: Callable[[], Placed], finish: Callable[[_Ready], Result]
    ) -> Result:
        """Place the inputs, have the kernels enqueued between two events, finish; a capture has the GPU to itself."""
        try:
            with TURNS.using():
                ready = self._prepared(engine, place())
                captured = self._captured()
                if ready.graph in captured:
                    self._launch(ready)
                    return finish(ready)
            # A thread's first run with a graph's number captures it.
            with TURNS.capturing():
                self._launch(ready)
                captured.add(ready.graph)
                return finish(ready)
        except BackendError:
            raise
        except Exception as error:
            raise refused("running", engine.path, error) from error

    def _captured(self) -> set[str]:
        """Numbers of the graphs that this thread has: the provider keeps graphs, and its handles, for each thread."""
        if not hasattr(self._thread, "captured"):
            self._thread.captured = {_NO_GRAPH}
        found: set[str] = self._thread.captured
        return found

    def _launch(self, ready: _Ready) -> None:
        self._timer.begin()
        self.runtime.run_with_iobinding(ready.binding, ready.options)
        self._timer.end()

    def _run_unbound(self, engine: Opener, inputs: Placed) -> dict[str, Array]:
        """Run where the runtime allocates the outputs, and copy them."""
        binding = self._with_inputs(engine, inputs)
        for info in engine.outputs:
            binding.bind_output(info.name, "cpu")
        try:
            self._timer.begin()
            self.runtime.run_with_iobinding(binding, _run_options(_NO_GRAPH))
            self._timer.end()
        except Exception as error:
            raise refused("running", engine.path, error) from error
        self._stream.synchronize()
        values = binding.get_outputs()
        return {info.name: value.numpy() for info, value in zip(engine.outputs, values, strict=True)}

    def _prepared(self, engine: Opener, inputs: Placed) -> _Ready:
        shapes = tuple(shape for shape, _ in inputs)
        if shapes not in self._shapes:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[shapes] = self._learnt(engine, inputs)
        outputs = self._shapes[shapes]
        for info in engine.outputs:
            self._buffers.reserve(info.name, _bytes(outputs[info.name], info.dtype))
        written = tuple(self._buffers.device(info.name) for info in engine.outputs)
        key = inputs, written
        if key not in self._ready:
            if len(self._ready) >= _MOST_SHAPES:
                self._ready.clear()
            binding = self._with_inputs(engine, inputs)
            for info, address in zip(engine.outputs, written, strict=True):
                _bind(binding.bind_output, engine, info, outputs[info.name], address)
            graph = self._graph_of(key)
            self._ready[key] = _Ready(binding, outputs, graph, _run_options(graph))
        return self._ready[key]

    def _learnt(self, engine: Opener, inputs: Placed) -> Mapping[str, tuple[int, ...]]:
        """Run once where the runtime allocates the outputs, to learn their shapes."""
        binding = self._with_inputs(engine, inputs)
        for info in engine.outputs:
            binding.bind_output(info.name, "cuda", engine.driver.device.number)
        self.runtime.run_with_iobinding(binding, _run_options(_NO_GRAPH))
        self._stream.synchronize()
        values = binding.get_outputs()
        return {info.name: tuple(value.shape()) for info, value in zip(engine.outputs, values, strict=True)}

    def _with_inputs(self, engine: Opener, inputs: Placed) -> Any:
        binding = self.runtime.io_binding()
        for info, (shape, address) in zip(engine.inputs, inputs, strict=True):
            _bind(binding.bind_input, engine, info, shape, address)
        return binding

    def _graph_of(self, key: Hashable) -> str:
        """The number of a key's CUDA graph, the same for ever, or the one that says to run without."""
        if self.without_graph:
            return _NO_GRAPH
        if key not in self._graphs and len(self._graphs) < MOST_GRAPHS:
            self._graphs[key] = len(self._graphs) + 1
        return str(self._graphs.get(key, _NO_GRAPH))

    def close(self) -> None:
        """Release stream, buffers and graphs; outputs of `run` stay valid as long as someone holds them."""
        if self._open:
            self._open = False
            with TURNS.using():
                self._held.close()

    def _let_go(self) -> None:
        """Destroy the runtime with its graphs: bindings hold it, too."""
        self._feeding = {}
        self._ready.clear()
        self.runtime = None


def _run_options(graph: str) -> Any:
    made = onnxruntime.RunOptions()
    made.add_run_config_entry("gpu_graph_id", graph)
    # The session synchronises once, behind the copies of the outputs.
    made.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return made


def _bind(bind: Any, engine: Opener, info: TensorInfo, shape: tuple[int, ...], address: int) -> None:
    dtype = np.dtype(info.dtype).type
    bind(info.name, "cuda", engine.driver.device.number, dtype, shape, address)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
