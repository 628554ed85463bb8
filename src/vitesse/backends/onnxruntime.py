"""ONNX Runtime on the CPU.

Weights live in one `InferenceSession`, whose `run` is thread-safe. A Session of ours is an IO binding on it:
inputs are bound where the caller's arrays lie, outputs go to arrays that are reused, so that sessions share
weights and thread pool but no buffer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import onnxruntime

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.closing import Closing
from vitesse.backends.feeds import check_feeds
from vitesse.backends.onnxruntime_files import quantises_to_fp8, read_graph, refused, tensor_info
from vitesse.backends.protocol import Array, Availability, Built, LoadOptions, Outcome, Tensors
from vitesse.errors import BackendError

# Shapes whose output buffers a session keeps: a server's batch sizes fit, free image sizes stay bounded.
_KEPT_SHAPES = 16

# How long idle threads wait for work by spinning. Not at all costs a quarter of the speed of small models; the
# default keeps every core busy for about 30 ms after each call. See docs/benchmarking.md for the figures.
_SPIN_US = 1000

# What is appended to `LoadOptions.profile_to` to name the file of the optimised graph.
RUNNING_GRAPH = ".running.onnx"

# How its messages name the type.


class OnnxRuntimeSession(Closing):
    """One stream: an IO binding with its output buffers. Not thread-safe."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._engine: OnnxRuntimeEngine | None = engine
        self._binding = engine.runtime.io_binding()
        self._buffers: dict[tuple[tuple[int, ...], ...], dict[str, Array]] = {}
        self._fixed_outputs = True

    def run(self, feeds: Tensors) -> Outcome:
        """Run once; `host_ms` spans everything from the caller's arrays to numpy outputs.

        Raises:
            DataError: names, dtypes or shapes do not fit the graph.
            BackendError: the runtime refuses, or the session or its engine is closed.
        """
        if self._engine is None:
            raise BackendError("this session is closed", expected="an open one", fix="engine.session()")
        runtime = self._engine.runtime
        start = perf_counter_ns()
        check_feeds(feeds, self._engine.inputs)
        try:
            outputs = self._call(runtime, feeds)
        except Exception as error:
            raise refused("running", self._engine.path, error) from error
        return Outcome(outputs, (perf_counter_ns() - start) / 1e6)

    def _call(self, runtime: Any, feeds: Tensors) -> Tensors:
        assert self._engine is not None
        if self._engine.plain:
            names = [info.name for info in self._engine.outputs]
            return dict(zip(names, runtime.run(None, dict(feeds)), strict=True))
        bound = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in bound.items():
            self._binding.bind_cpu_input(name, array)
        key = tuple(array.shape for array in bound.values())
        buffers = self._buffers.get(key) if self._fixed_outputs else None
        if buffers is not None:
            try:
                return self._into(runtime, buffers)
            except Exception:
                # An output whose shape depends on the values cannot have a buffer of fixed shape. When
                # something else is wrong, the call below meets it again and raises.
                self._fixed_outputs = False
        outputs = self._into_new(runtime)
        if self._fixed_outputs:
            if len(self._buffers) >= _KEPT_SHAPES:
                self._buffers.clear()
            self._buffers[key] = {name: np.empty_like(array) for name, array in outputs.items()}
        return outputs

    def _into(self, runtime: Any, buffers: dict[str, Array]) -> Tensors:
        for name, array in buffers.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        runtime.run_with_iobinding(self._binding)
        return buffers

    def _into_new(self, runtime: Any) -> dict[str, Array]:
        assert self._engine is not None
        self._binding.clear_binding_outputs()
        for info in self._engine.outputs:
            self._binding.bind_output(info.name, "cpu")
        runtime.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()
        return {info.name: value.numpy() for info, value in zip(self._engine.outputs, values, strict=True)}

    def close(self) -> None:
        """Release the buffers; outputs of earlier runs stay valid as long as someone holds them."""
        self._engine, self._binding = None, None
        self._buffers.clear()


class OnnxRuntimeEngine(Closing):
    """A loaded model. Sessions share its weights and, with more than one thread, its thread pool."""

    def __init__(self, runtime: Any, path: Path, *, plain: bool) -> None:
        self._runtime = runtime
        self.path = path
        self.plain = plain
        self.inputs = tuple(tensor_info(node, path) for node in runtime.get_inputs())
        self.outputs = tuple(tensor_info(node, path) for node in runtime.get_outputs())

    @property
    def runtime(self) -> Any:
        """The `onnxruntime.InferenceSession`; raises BackendError once the engine is closed."""
        if self._runtime is None:
            raise BackendError("this engine is closed", expected="an open one", fix="backend.load(artifact)")
        return self._runtime

    def session(self) -> OnnxRuntimeSession:
        """Open a session."""
        return OnnxRuntimeSession(self)

    def end_profile(self) -> Path:
        """Stop profiling (`LoadOptions.profile_to`) and return the JSON file ONNX Runtime wrote."""
        return Path(self.runtime.end_profiling())

    def close(self) -> None:
        """Release the weights; sessions made from this engine refuse to run from here on."""
        self._runtime = None


class OnnxRuntimeBackend:
    """ONNX Runtime's CPU execution provider."""

    name = "onnxruntime"
    distrusts: tuple[str, ...] = ()

    def probe(self) -> Availability:
        """Report version and device."""
        return Availability(True, onnxruntime.__version__, ("CPU",), ("fp32", "int8"))

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Rewrite standard operators it lacks into others, and the rest into the forms ONNX Runtime runs fastest.

        A graph in which nothing was lowered stays the same file, with the same hash.
        """
        # Imported here because deployment loads this module without the packages that lowering needs.
        from vitesse.backends.onnxruntime_lowering import lower
        from vitesse.lowering.needed import lower_for
        from vitesse.metadata import serialise

        model = read_graph(artifact.path)
        made = lower_for(self, model, artifact.spec)
        lowered, changes = lower(model if made is None else made.model)
        if made is None and not any(changes.values()):
            return Built(artifact, changes)
        provenance = Provenance("build:onnxruntime", artifact.sha256)
        content = serialise(lowered, artifact.spec)
        stored = store.put(content, artifact.spec, provenance, suffix=".onnx")
        return (
            Built(stored, changes)
            if made is None
            else Built(stored, {**made.changes, **changes}, made.notes())
        )

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> OnnxRuntimeEngine:
        """Load an ONNX file.

        Raises:
            BackendError: the file is damaged or gone, or has an operator ONNX Runtime does not know (named).
        """
        options = options or LoadOptions()
        try:
            wanted = options
            if quantises_to_fp8(artifact.path):
                # Its optimiser takes the Q/DQ of FP8 for that of integers: it leaves out a ReLU before it, as if what
                # is below zero were cut off, and writes operators that refuse FP8. Unoptimised, the numbers are right.
                wanted = replace(options, reference=True, plain=False)
            runtime = _runtime(artifact.path, wanted)
        except Exception as error:
            raise refused("loading", artifact.path, error) from error
        return OnnxRuntimeEngine(runtime, artifact.path, plain=options.plain)


def _runtime(path: Path, options: LoadOptions) -> Any:
    model: str | bytes = str(path)
    if options.emulate:
        # Imported here because deployment never emulates.
        from vitesse.precision.emulation import emulated

        model = emulated(onnx.load(path)).SerializeToString()
    if options.plain and not options.profile_to:
        return onnxruntime.InferenceSession(model)
    return onnxruntime.InferenceSession(model, _session_options(options), providers=["CPUExecutionProvider"])


def _session_options(options: LoadOptions) -> Any:
    made = onnxruntime.SessionOptions()
    if options.profile_to:
        made.enable_profiling = True
        made.profile_file_prefix = options.profile_to
        # The graph as it runs, fused and renamed, to find in it where each kernel came from.
        made.optimized_model_filepath = f"{options.profile_to}{RUNNING_GRAPH}"
        made.log_severity_level = 3  # it warns that the file is for this machine only
    if options.plain:
        return made
    made.log_severity_level = 3  # what ONNX Runtime only warns about, verifying decides
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    made.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    made.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if options.reference:
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return made
