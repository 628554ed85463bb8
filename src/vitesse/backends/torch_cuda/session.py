"""One stream of the engine: inputs at fixed addresses, page-locked buffers, one CUDA graph a shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.captures import TURNS
from vitesse.backends.feeds import check_feeds
from vitesse.backends.protocol import Array, Outcome, TensorInfo, Tensors
from vitesse.backends.torch_cuda.device import products
from vitesse.backends.torch_cuda.foreign import tensor_on
from vitesse.backends.torch_cuda.lanes import Captured, Lane, lane_on
from vitesse.errors import BackendError, VitesseError

# Shapes whose buffers and CUDA graph a session keeps; the one that was used longest ago goes first.
MOST_SHAPES = 16

Sizes = tuple[tuple[int, ...], ...]


class Program(Protocol):
    """A graph for one set of shapes, bound or plain; it holds no state of a run."""

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Enqueue one run on the current stream and return its outputs."""
        ...


class Opener(Protocol):
    """What a session needs of its engine."""

    device: torch.device
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    tf32: bool

    def program(self, sizes: Sizes) -> tuple[Program, bool]:
        """Return the program for the shapes of the inputs, in their order, and whether it may be captured."""
        ...

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        ...

    def remark(self, text: str) -> None:
        """Note something that makes runs slower than they should be."""
        ...

    def failed(self, error: Exception) -> VitesseError:
        """Word what torch or a kernel raised while running."""
        ...


@dataclass
class _Ready:
    """What calls of one shape reuse. `captured` is None until the graph is there, or where there is none."""

    program: Program
    capturable: bool
    inputs: dict[str, Tensor]
    host: dict[str, Tensor] = field(default_factory=dict)
    captured: Captured | None = None

    @property
    def to_capture(self) -> bool:
        return self.capturable and self.captured is None


class TorchCudaSession(Closing):
    """One stream with its buffers and CUDA graphs. Not thread-safe: one thread at a time."""

    def __init__(self, engine: Opener) -> None:
        self._engine, self._open = engine, True
        self._device = engine.device
        with TURNS.using():
            self._lane: Lane = lane_on(engine.device)
        self._ready: OrderedDict[Sizes, _Ready] = OrderedDict()
        # What `run_on_device` reads, kept from being freed until the next run.
        self._feeding: Mapping[str, Tensor] = {}

    @property
    def graphs(self) -> int:
        """How many shapes are replayed as CUDA graphs."""
        return sum(ready.captured is not None for ready in self._ready.values())

    def run(self, feeds: Tensors) -> Outcome:
        """Run once; `host_ms` spans everything from the caller's arrays to numpy outputs, `device_ms` the network.

        The first call of a shape takes longer: its plan is made where the engine has none, and its graph is captured.

        Raises:
            DataError: names, dtypes or shapes do not fit the graph.
            BackendError: torch or a kernel fails, memory does not suffice, or the session or its engine is closed.
        """
        engine = self._opened()
        start = perf_counter_ns()
        check_feeds(feeds, engine.inputs)
        sizes = tuple(tuple(feeds[info.name].shape) for info in engine.inputs)
        try:
            self._prepare(engine, sizes)
            with TURNS.using(), self._lane.working():
                ready = self._ready[sizes]
                for name, static in ready.inputs.items():
                    host = self._host(ready, f"in {name}", tuple(static.shape), static.dtype)
                    np.copyto(host.numpy(), feeds[name])
                    static.copy_(host, non_blocking=True)
                made = self._work(engine, ready)
                results = {
                    info.name: self._fetched(ready, info.name, made[info.name]) for info in engine.outputs
                }
                self._lane.synchronize()
        except VitesseError:
            raise
        except Exception as error:
            raise engine.failed(error) from error
        return Outcome(results, (perf_counter_ns() - start) / 1e6, self._lane.ms())

    def run_on_device(self, feeds: Mapping[str, object]) -> Mapping[str, Tensor]:
        """Run once on tensors that are on the GPU, and return torch tensors there, without copying them.

        Takes torch tensors and whatever has `__dlpack__` or `__cuda_array_interface__`. Returns as soon as the work is
        enqueued: the session's stream waits for torch's current stream of this thread, which then waits for the
        session's, so that torch code needs no further thought. The outputs belong to the session and are overwritten
        by its next run. The inputs are copied to where the CUDA graph reads them, unless they are `inputs_for` it.

        Raises:
            DataError: names, dtypes or shapes do not fit the graph, or a tensor lies elsewhere.
            BackendError: as `run`.
        """
        engine = self._opened()
        given = {name: tensor_on(self._device, name, value) for name, value in feeds.items()}
        check_feeds({name: _Described(tensor) for name, tensor in given.items()}, engine.inputs)
        sizes = tuple(tuple(given[info.name].shape) for info in engine.inputs)
        try:
            self._prepare(engine, sizes)
            with TURNS.using():
                self._lane.behind_caller()
                with self._lane.working():
                    ready = self._ready[sizes]
                    for name, static in ready.inputs.items():
                        if static.data_ptr() != given[name].data_ptr():
                            static.copy_(given[name], non_blocking=True)
                    made = self._work(engine, ready)
                self._lane.before_caller()
        except VitesseError:
            raise
        except Exception as error:
            raise engine.failed(error) from error
        self._feeding = given
        return dict(made)

    def inputs_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Tensor]:
        """Return the tensors that runs of these shapes read: who fills them in place spares `run_on_device` a copy.

        They are the session's and stay valid until `MOST_SHAPES` other shapes have been run.

        Raises:
            BackendError: as `run`.
        """
        engine = self._opened()
        sizes = tuple(tuple(shapes[info.name]) for info in engine.inputs)
        try:
            self._prepare(engine, sizes)
        except VitesseError:
            raise
        except Exception as error:
            raise engine.failed(error) from error
        return dict(self._ready[sizes].inputs)

    def synchronize(self) -> float:
        """Wait for what `run_on_device` enqueued, and return the milliseconds that it took on the device."""
        self._opened()
        with TURNS.using():
            self._lane.synchronize()
            return self._lane.ms() or 0.0

    def close(self) -> None:
        """Wait for the stream and release buffers and graphs; arrays that `run` returned stay readable."""
        if not self._open:
            return
        self._open = False
        with TURNS.using():
            self._lane.synchronize()
            self._ready.clear()
            self._feeding = {}

    def _opened(self) -> Opener:
        self._engine.check_open()
        if not self._open:
            raise BackendError("this session is closed", expected="an open one", fix="engine.session()")
        return self._engine

    def _prepare(self, engine: Opener, sizes: Sizes) -> None:
        """Have everything there for a shape: program, buffers, and the CUDA graph, captured with the GPU to itself."""
        if sizes not in self._ready:
            with TURNS.using(), self._lane.working():
                self._ready[sizes] = self._made(engine, sizes)
                while len(self._ready) > MOST_SHAPES:
                    self._lane.synchronize()
                    self._ready.popitem(last=False)
        self._ready.move_to_end(sizes)
        ready = self._ready[sizes]
        if ready.to_capture:
            with TURNS.capturing(), self._lane.working(), products(tf32=engine.tf32):
                try:
                    ready.captured = self._lane.capture(lambda: ready.program.run(ready.inputs))
                except RuntimeError as error:
                    ready.capturable = False
                    engine.remark(f"runs of {sizes} are not replayed as a CUDA graph: {error}")

    def _made(self, engine: Opener, sizes: Sizes) -> _Ready:
        program, capturable = engine.program(sizes)
        inputs = {}
        for info, size in zip(engine.inputs, sizes, strict=True):
            inputs[info.name] = self._lane.buffer(size, torch_type(info.dtype), host=False).zero_()
        made = _Ready(program, capturable and self._lane.captures, inputs)
        if made.capturable:
            # Libraries choose and allocate on a thread's first run, which a capture would not survive.
            with products(tf32=engine.tf32):
                program.run(inputs)
        return made

    def _work(self, engine: Opener, ready: _Ready) -> Mapping[str, Tensor]:
        with self._lane.timed():
            if ready.captured is not None:
                ready.captured.graph.replay()
                return ready.captured.outputs
            with products(tf32=engine.tf32):
                return ready.program.run(ready.inputs)

    def _fetched(self, ready: _Ready, name: str, tensor: Tensor) -> Array:
        host = self._host(ready, f"out {name}", tuple(tensor.shape), tensor.dtype)
        host.copy_(tensor, non_blocking=True)
        found: Array = host.numpy()
        return found

    def _host(self, ready: _Ready, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The host buffer of an input or output; a new one where a shape depends on values and has changed."""
        known = ready.host.get(key)
        if known is None or tuple(known.shape) != shape:
            known = ready.host[key] = self._lane.buffer(shape, dtype, host=True)
        return known


@dataclass(frozen=True)
class _Described:
    """A tensor as `check_feeds` reads it."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(str(self.tensor.dtype).removeprefix("torch."))


def torch_type(name: str) -> torch.dtype:
    """Return torch's type of a numpy name."""
    found: torch.dtype = getattr(torch, name)
    return found
