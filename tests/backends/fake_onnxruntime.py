"""A fake of ONNX Runtime's CUDA provider on the fake of CUDA: no GPU, but what was seen to go wrong on one does.

The numbers come from ONNX Runtime's CPU provider, read from and written to the fake device memory when the stream's
work is done. As on a GPU:

* graphs are kept for each thread and `gpu_graph_id`; the first run of an id on a thread runs and captures, later ones
  replay what was captured, at the addresses of that time, whatever is bound;
* the capture is CUDA's global mode: it breaks where any other thread is inside CUDA or the runtime meanwhile;
* the id -1 never captures; graphs are refused where an operator has no CUDA kernel;
* destroying a session destroys its graphs, which must not run any more, and needs the stream to be there.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime

from backends.cuda.fake_driver import FakeDriver

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# A capture takes a while, so that what another thread does meanwhile falls into it.
CAPTURE_S = 0.005
REFUSES_GRAPHS = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user as all "
    "compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)
BROKEN = "CUDA failure 901: operation failed due to a previous error during capture"


class WatchedDriver(FakeDriver):
    """Knows which threads are inside CUDA; `overlaps` names what fell into another thread's capture."""

    def __init__(self) -> None:
        super().__init__()
        self.overlaps: list[str] = []
        self.captures = 0
        self._inside: Counter[int] = Counter()
        self._captures_globally = 0
        self._watch = threading.RLock()  # garbage is collected inside, too

    @contextmanager
    def inside(self, what: str) -> Iterator[None]:
        """Be inside CUDA for a while, as any call of it is."""
        thread = threading.get_ident()
        with self._watch:
            self._inside[thread] += 1
            if self._captures_globally not in (0, thread):
                self.overlaps.append(f"{what} during another thread's capture")
        try:
            yield
        finally:
            with self._watch:
                self._inside[thread] -= 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Forbid every other thread to be inside CUDA, as a capture in the global mode does."""
        thread = threading.get_ident()
        with self._watch:
            if self._captures_globally or any(self._inside[one] for one in self._inside if one != thread):
                self.overlaps.append("a capture began while another thread was inside CUDA")
            self._captures_globally = thread
        try:
            yield
        finally:
            with self._watch:
                self._captures_globally = 0

    def captured_globally(self, stream: int, act: Callable[[], None]) -> int:
        """Capture in the mode that lets no other thread do anything."""
        before = len(self.overlaps)
        with self.alone():
            self.begin_capture(stream)
            self.kernel(stream, act)
            time.sleep(CAPTURE_S)
            graph = self.end_capture(stream)
        if len(self.overlaps) > before:
            self.destroy_graph(graph)
            raise RuntimeError(BROKEN)
        self.captures += 1
        return graph

    def check_clean(self) -> None:
        super().check_clean()
        assert not self.overlaps, f"broke a capture: {self.overlaps}"


def _watched(name: str) -> Callable[..., Any]:
    plain = getattr(FakeDriver, name)

    def call(self: WatchedDriver, *arguments: Any) -> Any:
        # The lock is of the fake alone: its tables are no place for two threads at once.
        with self.inside(name), self._lock:
            return plain(self, *arguments)

    return call


for _name in (
    *("memory", "malloc", "free", "malloc_host", "free_host", "copy", "synchronize", "create_stream"),
    *("destroy_stream", "create_event", "destroy_event", "record", "wait", "elapsed_ms", "kernel"),
    *("begin_capture", "end_capture", "launch", "destroy_graph", "peek", "poke"),
):
    setattr(WatchedDriver, _name, _watched(_name))


@dataclass
class FakeValue:
    """An output of the last run: on the device at an address, or on the host once the stream has come so far."""

    dims: tuple[int, ...] = ()
    array: np.ndarray[Any, Any] | None = None

    def shape(self) -> list[int]:
        return list(self.dims)

    def numpy(self) -> np.ndarray[Any, Any]:
        assert self.array is not None, "read before the stream was waited for"
        return self.array


@dataclass(frozen=True)
class Place:
    """What was bound: an address of the device, or a device alone, where the runtime allocates."""

    device: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] = ()
    address: int | None = None


class FakeBinding:
    """What `io_binding()` gives."""

    def __init__(self, session: FakeInferenceSession) -> None:
        self.session = session
        self.inputs: dict[str, Place] = {}
        self.outputs: dict[str, Place] = {}
        self.values: dict[str, FakeValue] = {}

    def bind_input(
        self, name: str, device: str, number: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None:
        assert (device, number) == ("cuda", self.session.driver.device.number)
        self.inputs[name] = Place(device, np.dtype(dtype), tuple(shape), address)

    def bind_output(
        self,
        name: str,
        device: str = "cpu",
        number: int = 0,
        dtype: Any = None,
        shape: Sequence[int] | None = None,
        address: int | None = None,
    ) -> None:
        known = None if dtype is None else np.dtype(dtype)
        self.outputs[name] = Place(device, known, tuple(shape or ()), address)

    def get_outputs(self) -> list[FakeValue]:
        return [self.values[name] for name in self.outputs]


class FakeInferenceSession:
    """What `onnxruntime.InferenceSession` is to a session of ours, with the CUDA provider first."""

    def __init__(self, runtime: FakeOnnxRuntime, path: str, settings: Mapping[str, str]) -> None:
        self._cpu = onnxruntime.InferenceSession(path, _quiet(), providers=[CPU])
        model = onnx.load(path)
        nodes = (node for graph in (model.graph, *model.functions) for node in graph.node)
        self._values_decide = any(node.op_type == "NonZero" for node in nodes)
        self.driver, self.settings = runtime.driver, dict(settings)
        self._providers = [CPU] if runtime.falls_back else [CUDA, CPU]
        self.graphs_on = settings.get("enable_cuda_graph") == "1"
        self.stream = 0 if runtime.falls_back else int(settings.get("user_compute_stream", "0"))
        self.bindings: weakref.WeakSet[FakeBinding] = weakref.WeakSet()
        self.ran: list[str] = []
        self._graphs: dict[tuple[int, str], int] = {}
        self._arena: dict[tuple[str, int], int] = {}
        weakref.finalize(self, _destroyed, self.driver, self.stream, self._graphs, self._arena)

    def get_inputs(self) -> Any:
        return self._cpu.get_inputs()

    def get_outputs(self) -> Any:
        return self._cpu.get_outputs()

    def get_providers(self) -> list[str]:
        return self._providers

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> Any:
        return self._cpu.run(names, feeds)

    def io_binding(self) -> FakeBinding:
        made = FakeBinding(self)
        self.bindings.add(made)
        return made

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        number = options.get_run_config_entry("gpu_graph_id")
        self.ran.append(number)
        key = threading.get_ident(), number
        with self.driver.inside("Run"):
            if self.graphs_on and key in self._graphs:
                self.driver.launch(self._graphs[key], self.stream)
                return
            act = self._kernel(binding)
            self.driver.kernel(self.stream, act)
            if self.graphs_on and number != "-1":
                self._graphs[key] = self.driver.captured_globally(self.stream, act)

    def _kernel(self, binding: FakeBinding) -> Callable[[], None]:
        """All of the network, as work of the stream that reads and writes where things are bound now."""
        inputs = dict(binding.inputs)
        placed = {name: self._placed(name, place, inputs) for name, place in binding.outputs.items()}
        binding.values = {name: FakeValue(place.shape) for name, place in placed.items()}
        return partial(_compute, self._cpu, self.driver, inputs, placed, dict(binding.values))

    def _placed(self, name: str, place: Place, inputs: Mapping[str, Place]) -> Place:
        if place.device == "cpu":
            return place
        shape, dtype = self._shape_of(name, inputs)
        if place.address is not None:
            if place.shape != shape:
                raise RuntimeError(f"{name} is {shape}; a buffer of {place.shape} is bound")
            return place
        # The arena: as large as the largest, freed with the session.
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        if (name, size) not in self._arena:
            self._arena[name, size] = self.driver.malloc(size)
        return Place("cuda", dtype, shape, self._arena[name, size])

    def _shape_of(self, name: str, inputs: Mapping[str, Place]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape of an output; where values decide it, the values are waited for, as such a kernel does."""
        if self._values_decide:
            self.driver.synchronize(self.stream)
            feeds = _read(self.driver, inputs)
        else:
            feeds = {one: np.zeros(place.shape, place.dtype) for one, place in inputs.items()}
        (found,) = self._cpu.run([name], feeds)
        return found.shape, found.dtype


def _compute(
    cpu: Any,
    driver: FakeDriver,
    inputs: Mapping[str, Place],
    outputs: Mapping[str, Place],
    values: Mapping[str, FakeValue],
) -> None:
    feeds = _read(driver, inputs)
    for (name, place), found in zip(outputs.items(), cpu.run(list(outputs), feeds), strict=True):
        if place.address is None:
            values[name].dims, values[name].array = found.shape, found
        else:
            driver.poke(place.address, found.tobytes())


def _read(driver: FakeDriver, places: Mapping[str, Place]) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for name, place in places.items():
        assert place.dtype is not None and place.address is not None
        size = int(np.prod(place.shape)) * place.dtype.itemsize
        found[name] = np.frombuffer(driver.peek(place.address, size), place.dtype).reshape(place.shape)
    return found


def _destroyed(
    driver: WatchedDriver,
    stream: int,
    graphs: Mapping[tuple[int, str], int],
    arena: Mapping[tuple[str, int], int],
) -> None:
    with driver.inside("destroying a runtime"):
        if stream:
            driver.capturing(stream)  # a misuse where the stream went first
        for graph in graphs.values():
            driver.destroy_graph(graph)
        for address in arena.values():
            driver.free(address)


def _quiet() -> Any:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.log_severity_level = 3
    return made


@dataclass
class FakeOnnxRuntime:
    """Stands for the module `onnxruntime`.

    cpu_nodes: some operator has no CUDA kernel, so that graphs are refused. falls_back: CUDA's libraries are missing.
    has_cuda: this build has the provider at all. `made` has every session that was opened, as weak references.
    """

    driver: WatchedDriver
    cpu_nodes: bool = False
    falls_back: bool = False
    has_cuda: bool = True
    settings: list[dict[str, str]] = field(default_factory=list)
    made: list[weakref.ref[FakeInferenceSession]] = field(default_factory=list)

    __version__ = "9.9.9"
    SessionOptions = onnxruntime.SessionOptions

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU] if self.has_cuda else [CPU]

    def set_default_logger_severity(self, severity: int) -> None:
        """Nothing is logged."""

    def preload_dlls(self) -> None:
        """There are none."""

    def InferenceSession(
        self, path: str, options: Any = None, *, providers: Sequence[tuple[str, Mapping[str, str]]]
    ) -> FakeInferenceSession:
        ((name, settings),) = providers
        assert name == CUDA
        self.settings.append(dict(settings))
        with self.driver.inside("opening a runtime"):
            if self.cpu_nodes and settings.get("enable_cuda_graph") == "1":
                raise RuntimeError(REFUSES_GRAPHS)
            made = FakeInferenceSession(self, path, settings)
        self.made.append(weakref.ref(made))
        return made

    @property
    def latest(self) -> FakeInferenceSession:
        """The session opened last; it must still live."""
        found = self.made[-1]()
        assert found is not None
        return found
