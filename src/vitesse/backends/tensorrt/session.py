"""One stream of a TensorRT engine: buffers for the largest shape, contexts, CUDA graphs, one wait a call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from math import prod
from time import perf_counter_ns
from typing import Protocol

import numpy as np

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.arrays import DeviceArray, device_array
from vitesse.backends.cuda.buffers import Buffers
from vitesse.backends.cuda.driver import CudaError, Driver
from vitesse.backends.cuda.graphs import GraphCache
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.cuda.stream import Stream
from vitesse.backends.feeds import check_feeds
from vitesse.backends.protocol import Outcome, TensorInfo, Tensors
from vitesse.backends.tensorrt.contexts import KEPT, Contexts, Ready, Shapes
from vitesse.backends.tensorrt.options import Profile, Shape
from vitesse.backends.tensorrt.runtime_settings import RuntimeSettings
from vitesse.errors import BackendError


class Opener(Protocol):
    """What a session needs of its engine."""

    driver: Driver
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[Profile, ...]
    settings: RuntimeSettings
    device_pool: Pool
    host_pool: Pool
    captures_graphs: bool

    def largest_shapes(self) -> tuple[Shapes, ...]:
        """Return the largest input shapes of every profile."""
        ...

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        ...

    def said(self) -> tuple[str, ...]:
        """Return the errors that the library has logged since this was last asked."""
        ...


class TensorRtSession(Closing):
    """One stream. Not thread-safe: one thread at a time, any thread.

    Buffers of every input and output are made at once for the largest shape of any profile, so that nothing is
    allocated or moved afterwards. Where CUDA graphs are on, the second call of a shape captures it and later ones
    replay it.
    """

    def __init__(self, engine: Opener) -> None:
        self._engine: Opener | None = engine
        self._driver = engine.driver
        with ExitStack() as made:
            self._stream = made.enter_context(Stream(self._driver))
            self._timer = self._stream.timer()
            self._buffers = made.enter_context(
                Buffers(self._driver, self._stream, device=engine.device_pool, host=engine.host_pool)
            )
            self._contexts = made.enter_context(
                Contexts(engine.settings, engine.profiles, self._stream, engine.device_pool)
            )
            self._graphs = made.enter_context(GraphCache(self._driver, self._stream, KEPT))
            self._capturing = engine.captures_graphs
            # Done first at the end: contexts must not go while work of `run_on_device` still runs.
            made.callback(self._stream.synchronize)
            self._reserve(engine)
            self._held = made.pop_all()
        self._addresses = self._buffers.addresses()
        # What `run_on_device` reads, kept from being freed until the next run.
        self._feeding: Mapping[str, DeviceArray] = {}

    def run(self, feeds: Tensors) -> Outcome:
        """Run once; `host_ms` spans everything from the caller's arrays to numpy outputs.

        `device_ms` spans the network alone, without the copies. The outputs lie in page-locked memory.

        Raises:
            DataError: names, dtypes or shapes do not fit the engine, or no profile holds the shapes.
            BackendError: TensorRT or CUDA refuses, or the session or its engine is closed.
        """
        engine = self._opened()
        start = perf_counter_ns()
        check_feeds(feeds, engine.inputs)
        shapes = tuple((info.name, feeds[info.name].shape) for info in engine.inputs)
        ready = self._contexts.own(shapes) if self._capturing else self._contexts.shared(shapes)
        try:
            inputs = {name: self._buffers.upload(name, feeds[name]) for name, _ in shapes}
            outputs = self._place(engine, ready)
            ready.bind({**inputs, **outputs})
            self._timer.begin()
            self._work(ready)
            self._timer.end()
            results = {
                info.name: self._buffers.download(info.name, ready.outputs[info.name], info.dtype)
                for info in engine.outputs
            }
            self._stream.synchronize()
        except BackendError as error:
            raise self._failed(engine, error) from error
        return Outcome(results, (perf_counter_ns() - start) / 1e6, self._timer.ms())

    def run_on_device(self, feeds: Mapping[str, object]) -> dict[str, DeviceArray]:
        """Run once on tensors that are on the GPU already, without copying; returns as soon as the work is enqueued.

        Work on the stream of each feed is waited for, on the device. Feeds must stay as they are until the outputs are
        used. The outputs belong to the session and are overwritten by its next run; they carry this session's stream,
        on which a consumer waits that takes them by DLPack or `__cuda_array_interface__`. Not captured as CUDA graphs,
        because the caller's addresses may be others each time.

        Args:
            feeds: by input name, a DeviceArray or any array on this GPU that `device_array` takes.

        Raises:
            DataError: names, dtypes or shapes do not fit the engine, or no profile holds the shapes.
            CudaError: an array lies in host memory or on another GPU, or is not C-contiguous.
            BackendError: TensorRT or CUDA refuses, or the session or its engine is closed.
        """
        engine = self._opened()
        stream = self._stream.handle
        arrays = {name: device_array(array, self._driver, stream=stream) for name, array in feeds.items()}
        check_feeds(arrays, engine.inputs)
        ready = self._contexts.shared(tuple((info.name, arrays[info.name].shape) for info in engine.inputs))
        try:
            outputs = self._place(engine, ready)
            ready.bind({**{name: array.address for name, array in arrays.items()}, **outputs})
            for array in arrays.values():
                array.wait_on(self._driver, stream)
            self._timer.begin()  # which also makes the GPU the current one of this thread
            ready.enqueue(self._stream)
            self._timer.end()
        except BackendError as error:
            raise self._failed(engine, error) from error
        self._feeding = arrays
        number, shapes = self._driver.device.number, ready.outputs
        return {
            info.name: DeviceArray(
                outputs[info.name],
                shapes[info.name],
                np.dtype(info.dtype),
                stream,
                number,
                self,
                self._driver,
            )
            for info in engine.outputs
        }

    def synchronize(self) -> float:
        """Wait for what `run_on_device` enqueued, and return the milliseconds that it took on the device."""
        self._opened()
        self._stream.synchronize()
        return self._timer.ms()

    @property
    def graphs(self) -> GraphCache:
        """The CUDA graphs of this session: how many were captured and replayed, and what could not be, and why."""
        return self._graphs

    def close(self) -> None:
        """Wait for the stream and release contexts, graphs and buffers; views of outputs stay valid."""
        if self._engine is None:
            return
        self._engine = None
        self._held.close()
        self._feeding = {}

    def _opened(self) -> Opener:
        if self._engine is None:
            raise BackendError("this session is closed", expected="an open one", fix="engine.session()")
        self._engine.check_open()
        return self._engine

    def _reserve(self, engine: Opener) -> None:
        """Make room for the largest shapes of all profiles."""
        for shapes in engine.largest_shapes():
            ready = self._contexts.shared(shapes)
            for info in engine.inputs:
                self._buffers.reserve(info.name, _bytes(dict(shapes)[info.name], info.dtype))
            self._place(engine, ready)

    def _place(self, engine: Opener, ready: Ready) -> dict[str, int]:
        """Return where the outputs go; they move only if one is larger than at the largest input."""
        for info in engine.outputs:
            self._buffers.reserve(info.name, _bytes(ready.outputs[info.name], info.dtype))
        return {info.name: self._buffers.device(info.name) for info in engine.outputs}

    def _work(self, ready: Ready) -> None:
        if not ready.alone or not ready.capturable(self._stream):
            ready.enqueue(self._stream)
            return
        if self._buffers.addresses() != self._addresses:
            self._graphs.invalidate()
            self._addresses = self._buffers.addresses()
        self._graphs.run(ready.key, lambda: ready.enqueue(self._stream))

    def _failed(self, engine: Opener, error: BackendError) -> BackendError:
        """Leave nothing running behind an error, and add what the library logged."""
        with suppress(CudaError):
            self._stream.synchronize()
        said = engine.said()
        if not said:
            return error
        what = f"{error.what}: {'; '.join(said)}"
        if isinstance(error, CudaError):
            return CudaError(what, code=error.code, expected=error.expected, cause=error.cause, fix=error.fix)
        return BackendError(what, expected=error.expected, cause=error.cause, fix=error.fix)


def _bytes(shape: Shape, dtype: str) -> int:
    return prod(shape) * np.dtype(dtype).itemsize
