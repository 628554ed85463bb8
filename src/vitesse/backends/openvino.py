"""OpenVINO on the CPU.

It reads ONNX files itself, with nearly every operator that the other stages produce: building for it keeps the file
and its hash unless it lacks one, so that what was verified for one runtime is what the other loads. Only its own INT8
(`openvino_int8`) needs its own format, one zip that holds the graph and the weights.

Static shapes run about a quarter faster than dynamic ones, so that a model whose only free dimension is the batch
is compiled for batch 1; another batch size compiles the general model when it is first met.
"""

from __future__ import annotations

import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import openvino

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.closing import Closing
from vitesse.backends.feeds import check_feeds
from vitesse.backends.openvino_ir import IR_SUFFIX, read_ir
from vitesse.backends.protocol import Array, Availability, Built, LoadOptions, Outcome, TensorInfo, Tensors
from vitesse.backends.refusal import refusal
from vitesse.errors import BackendError

_SINK = "/sink_port_0"  # what OpenVINO's ONNX reader appends to the names of results

Shapes = tuple[tuple[int, ...], ...]


class OpenVinoSession(Closing):
    """One stream: inference requests with their own tensors. Not thread-safe."""

    def __init__(self, engine: OpenVinoEngine) -> None:
        self._engine: OpenVinoEngine | None = engine
        self._requests: dict[bool, Any] = {}
        self._last: Any = None

    def run(self, feeds: Tensors) -> Outcome:
        """Run once; `host_ms` spans everything from the caller's arrays to numpy outputs.

        The first call with a batch other than 1 compiles the general model, which takes as long as loading.

        Raises:
            DataError: names, dtypes or shapes do not fit the graph.
            BackendError: the runtime refuses, or the session or its engine is closed.
        """
        if self._engine is None:
            raise BackendError("this session is closed", expected="an open one", fix="engine.session()")
        self._engine.check_open()
        start = perf_counter_ns()
        check_feeds(feeds, self._engine.inputs)
        try:
            outputs = self._call(self._engine, feeds)
        except RuntimeError as error:
            raise _refused("running", self._engine.path, error) from error
        return Outcome(outputs, (perf_counter_ns() - start) / 1e6)

    def _call(self, engine: OpenVinoEngine, feeds: Tensors) -> dict[str, Array]:
        # OpenVINO shares memory with writable, contiguous arrays only; others are copied.
        arrays = [np.require(feeds[info.name], requirements=["C", "W"]) for info in engine.inputs]
        special = tuple(array.shape for array in arrays) == engine.special_shapes
        request = self._requests.get(special)
        if request is None:
            request = self._requests[special] = engine.compiled(special=special).create_infer_request()
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        request.infer()
        self._last = request
        views = (request.get_output_tensor(index).data for index in range(len(engine.outputs)))
        # Buffers of a dynamic graph may move in the next call; a view into them could then read freed memory.
        arrays_out = views if special else (np.array(view) for view in views)
        return {info.name: array for info, array in zip(engine.outputs, arrays_out, strict=True)}

    def operator_times(self) -> tuple[tuple[str, str, float], ...]:
        """Return (operator type, node name, milliseconds) of each node; needs `LoadOptions.profile_to`.

        The times are OpenVINO's averages over all runs so far with the batch of the last one.
        """
        if self._last is None:
            raise BackendError("nothing was run in this session", expected="a run before asking for times")
        return tuple(
            (row.node_type, row.node_name, row.real_time.total_seconds() * 1e3)
            for row in self._last.profiling_info
        )

    def running_graph(self) -> Any:
        """Return the `openvino.Model` that the last run executed, fused and renamed; needs a run before."""
        if self._last is None:
            raise BackendError(
                "nothing was run in this session", expected="a run before asking for its graph"
            )
        return self._last.get_compiled_model().get_runtime_model()

    def close(self) -> None:
        """Release the requests and their buffers."""
        self._engine, self._last = None, None
        self._requests.clear()


class OpenVinoEngine(Closing):
    """A loaded model; compiled for batch 1 at once and in general on demand."""

    def __init__(self, model: Any, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.inputs = tuple(_info(port) for port in model.inputs)
        self.outputs = tuple(_info(port) for port in model.outputs)
        self._model, self.config = model, config
        self._general: Any = None
        self._lock = threading.Lock()
        self.special_shapes = _batch_one(self.inputs)
        self._special = self._specialise()
        if self._special is None:
            self.special_shapes = None
            self.compiled(special=False)

    def _specialise(self) -> Any:
        if self.special_shapes is None:
            return None
        fixed = self._model.clone()
        try:
            fixed.reshape(dict(enumerate(map(list, self.special_shapes))))
        except RuntimeError:
            return None  # a graph that does not take batch 1 is compiled as it is
        return _core().compile_model(fixed, "CPU", self.config)

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        if self._model is None:
            raise BackendError("this engine is closed", expected="an open one", fix="backend.load(artifact)")

    def compiled(self, *, special: bool) -> Any:
        """Return the compiled model for batch 1, or the general one, compiled when it is first asked for."""
        self.check_open()
        if special:
            return self._special
        with self._lock:
            if self._general is None:
                self._general = _core().compile_model(self._model, "CPU", self.config)
            return self._general

    def session(self) -> OpenVinoSession:
        """Open a session."""
        self.check_open()
        return OpenVinoSession(self)

    def close(self) -> None:
        """Release the weights; sessions made from this engine refuse to run from here on."""
        self._model, self._special, self._general = None, None, None


class OpenVinoBackend:
    """OpenVINO's CPU plugin."""

    name = "openvino"
    distrusts: tuple[str, ...] = ()

    def probe(self) -> Availability:
        """Report version and device."""
        if "CPU" not in _core().available_devices:
            return Availability(False, openvino.__version__, reason="OpenVINO finds no CPU plugin here")
        version = openvino.__version__.partition("-")[0]
        return Availability(True, version, ("CPU",), ("fp32", "int8"))

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Check that OpenVINO takes the file; the artifact keeps path and hash unless an operator must be rewritten.

        Raises:
            BackendError: names the operator that OpenVINO refuses.
        """
        made = self._lowered(artifact, store)
        with self.load(made.artifact):
            pass
        return made

    def _lowered(self, artifact: Artifact, store: Store) -> Built:
        """Rewrite what OpenVINO lacks, or computes otherwise than the standard says."""
        kept = Built(replace(artifact, backend=self.name))
        if artifact.path.suffix == IR_SUFFIX:
            return kept
        # Imported here because deployment loads this module without the packages that lowering needs.
        from vitesse.lowering.needed import lower_for
        from vitesse.metadata import serialise

        try:
            model = onnx.load(artifact.path)
        except Exception as error:
            raise _refused("reading", artifact.path, error) from error
        lowered = lower_for(self, model, artifact.spec)
        if lowered is None:
            return kept
        provenance = Provenance("build:openvino", artifact.sha256)
        content = serialise(lowered.model, artifact.spec)
        stored = store.put(content, artifact.spec, provenance, backend=self.name, suffix=".onnx")
        return Built(stored, lowered.changes, lowered.notes())

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> OpenVinoEngine:
        """Load an ONNX file, or the zip that `openvino_int8` makes.

        Raises:
            BackendError: the file is damaged or gone, or has an operator that OpenVINO does not know.
        """
        options = options or LoadOptions()
        if options.reference:
            raise BackendError(
                "OpenVINO cannot switch its graph optimisations off",
                expected="a runtime that can be the numerical reference",
                fix="load the reference on the backend 'onnxruntime'",
            )
        try:
            if artifact.path.suffix == IR_SUFFIX:
                model = read_ir(_core(), artifact.path)
            else:
                model = _core().read_model(artifact.path)
            return OpenVinoEngine(model, artifact.path, _config(options, model))
        except (RuntimeError, OSError, zipfile.BadZipFile, KeyError) as error:
            raise _refused("loading", artifact.path, error) from error


_shared_core: list[Any] = []


def _core() -> Any:
    """Return the process's one `openvino.Core`, made on first use: each loads the plugins anew."""
    if not _shared_core:
        _shared_core.append(openvino.Core())
    return _shared_core[0]


def _config(options: LoadOptions, model: Any) -> dict[str, Any]:
    profiling = {"PERF_COUNT": True} if options.profile_to else {}
    if options.plain:
        return profiling
    # Float32 means float32 also where the processor has bfloat16. Threads stay unpinned: a pinned thread cannot
    # leave a core that another process is using.
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        **profiling,
    }
    if any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        # OpenVINO 2026.4 compiles attention between quantised projections into one kernel that computes something
        # else (a trained DETR fell from AP 0.82 to 0.27). Without such kernels it is right, and 1 to 8 % slower.
        config["SNIPPETS_MODE"] = "DISABLE"
    if options.sessions > 1:
        config["NUM_STREAMS"] = options.sessions
    if options.threads > 0:
        config["INFERENCE_NUM_THREADS"] = options.threads * options.sessions
    return config


def _info(port: Any) -> TensorInfo:
    friendly = port.get_node().get_friendly_name().removesuffix(_SINK)
    name = friendly if friendly in port.get_names() else port.get_any_name()
    shape = tuple("?" if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorInfo(name, shape, np.dtype(port.element_type.to_dtype()).name)


def _batch_one(inputs: tuple[TensorInfo, ...]) -> Shapes | None:
    """Return all input shapes at batch 1; None where other dimensions than the first are free."""
    if any(isinstance(size, str) for info in inputs for size in info.shape[1:]):
        return None
    return tuple(tuple(1 if isinstance(size, str) else size for size in info.shape) for info in inputs)


def _refused(doing: str, path: Path, error: Exception) -> BackendError:
    return refusal(f"OpenVINO {openvino.__version__.partition('-')[0]}", doing, path, error)
