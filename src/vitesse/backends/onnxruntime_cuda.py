"""ONNX Runtime's CUDA provider, on buffers, a stream and CUDA graphs of our own.

A Session is an `InferenceSession` bound to one stream, because a provider is: sessions run at the same time, each with
its own copy of the weights, its own arena and its own CUDA graphs. Inputs go through page-locked memory to device
buffers that stay where they are, so that a graph captured for a shape can be replayed for the next image of that shape.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import onnx
import onnxruntime

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.closing import Closing
from vitesse.backends.cuda.bindings import cuda_driver, unavailable
from vitesse.backends.cuda.captures import TURNS
from vitesse.backends.cuda.driver import Driver
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from vitesse.backends.onnxruntime_cuda_session import OnnxRuntimeCudaSession
from vitesse.backends.onnxruntime_files import read_graph, refused, tensor_info
from vitesse.backends.protocol import Availability, Built, LoadOptions
from vitesse.errors import BackendError

PROVIDER = "CUDAExecutionProvider"
# Operators whose output is as long as the values say, or that choose what runs: each waits for the GPU, which no
# capture of a CUDA graph allows, and their outputs fit no buffer of fixed size.
_VALUES_DECIDE = frozenset(
    {"NonZero", "NonMaxSuppression", "Compress", "Unique", "If", "Loop", "Scan", "StringSplit"}
)

# What a session that asks for graphs is told when an operator has no CUDA kernel.
_NOT_ALL_ON_GPU = "cannot use the graph capture"


class OnnxRuntimeCudaEngine(Closing):
    """A graph on a GPU: the pools that its sessions share. The weights are loaded with every session."""

    def __init__(self, path: Path, driver: Driver, options: LoadOptions) -> None:
        self.path, self.driver = path, driver
        self._load_options = options
        self.device_pool = Pool(driver, cap_bytes=options.memory_bytes)
        self.host_pool = Pool(driver, host=True)
        self.values_decide = _values_decide(path)
        self._closed = False
        self._opening = Lock()
        self._sessions: weakref.WeakSet[OnnxRuntimeCudaSession] = weakref.WeakSet()
        # Opened here, so that a damaged file is refused when it is loaded and not when it is first run.
        self._first: OnnxRuntimeCudaSession | None = self._new()
        try:
            # No variable for the runtime: an error would keep it, and it must go before its stream.
            self.inputs = tuple(tensor_info(node, path) for node in self._first.runtime.get_inputs())
            self.outputs = tuple(tensor_info(node, path) for node in self._first.runtime.get_outputs())
        except BaseException:
            self.close()
            raise

    def session(self) -> OnnxRuntimeCudaSession:
        """Open a session: a stream, its buffers, the weights; any thread may ask."""
        self.check_open()
        with self._opening:
            first, self._first = self._first, None
        return first or self._new()

    def _new(self) -> OnnxRuntimeCudaSession:
        made = OnnxRuntimeCudaSession(self)
        self._sessions.add(made)
        return made

    def open(self, stream: int) -> tuple[Any, str]:
        """Return an `InferenceSession` on a stream, and why it captures no CUDA graphs ("" where it does).

        Raises:
            BackendError: the CUDA provider does not start or refuses the graph.
        """
        if not self._load_options.cuda_graph:
            return self._on(stream, graph=False), "switched off"
        if self.values_decide:
            return self._on(stream, graph=False), f"{self.values_decide}: how much it gives depends on values"
        try:
            return self._on(stream, graph=True), ""
        except BackendError as error:
            if _NOT_ALL_ON_GPU not in error.what:
                raise
        return self._on(stream, graph=False), "an operator of the graph has no CUDA kernel"

    def _on(self, stream: int, *, graph: bool) -> Any:
        settings = provider_options(self._load_options, stream, graph=graph)
        try:
            made = onnxruntime.InferenceSession(str(self.path), _quiet(), providers=[(PROVIDER, settings)])
        except Exception as error:
            raise refused("loading", self.path, error) from error
        check_provider(made)
        return made

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        if self._closed:
            raise BackendError("this engine is closed", expected="an open one", fix="backend.load(artifact)")

    def close(self) -> None:
        """Close the sessions made from it, then release the pools."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as leaving:
            leaving.callback(self._close_pools)
            for session in tuple(self._sessions):
                leaving.callback(session.close)

    def _close_pools(self) -> None:
        with TURNS.using(), ExitStack() as leaving:
            leaving.callback(self.host_pool.close)
            leaving.callback(self.device_pool.close)


class OnnxRuntimeCudaBackend:
    """ONNX Runtime's CUDA execution provider."""

    name = "cuda"
    distrusts: tuple[str, ...] = ()

    def probe(self) -> Availability:
        """Report version and device, or what is missing: the provider, the driver, a GPU."""
        reason, fix = _missing()
        if reason:
            return Availability(False, onnxruntime.__version__, reason=reason, fix=fix)
        device = cuda_driver().device
        precisions = ("fp32", "fp16", "bf16")
        return Availability(True, onnxruntime.__version__, (f"GPU: {device.name}",), precisions)

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Write the graph in the forms that have the fastest CUDA kernels, all of them on the GPU.

        A graph in which nothing was lowered stays the same file, with the same hash.
        """
        # Imported here because deployment loads this module without the packages that lowering needs.
        from vitesse.backends.onnxruntime_cuda_lowering import lower
        from vitesse.metadata import serialise

        model = read_graph(artifact.path)
        lowered, changes, notes = lower(model)
        if not any(changes.values()):
            return Built(replace(artifact, backend=self.name), changes, notes)
        provenance = Provenance("build:cuda", artifact.sha256)
        content = serialise(lowered, artifact.spec)
        stored = store.put(content, artifact.spec, provenance, backend=self.name, suffix=".onnx")
        return Built(stored, changes, notes)

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> Any:
        """Load an ONNX file.

        `plain` is the CUDA provider with its defaults and numpy arrays in and out, as a user would write it;
        `reference` the CPU provider without optimiser: the numbers that a GPU's are held against.

        Raises:
            BackendError: no GPU, no CUDA provider; the file is damaged or gone, or has an operator that ONNX Runtime
                does not know (named).
        """
        options = options or LoadOptions()
        if options.reference or options.emulate:
            return OnnxRuntimeBackend().load(replace(artifact, backend="onnxruntime"), options)
        reason, fix = _missing()
        if reason:
            raise BackendError(f"{artifact.path} cannot run on CUDA: {reason}", fix=fix)
        driver = cuda_driver(options.device)
        _prepare_runtime()
        try:
            if options.plain:
                return OnnxRuntimeEngine(_plain(artifact.path, driver), artifact.path, plain=True)
            return OnnxRuntimeCudaEngine(artifact.path, driver, options)
        except BackendError:
            raise
        except Exception as error:
            raise refused("loading", artifact.path, error) from error


def provider_options(options: LoadOptions, stream: int, *, graph: bool) -> dict[str, str]:
    """Return the CUDA provider's settings.

    The algorithms of convolutions come from cuDNN's heuristics: the provider's default, an exhaustive search, knows
    older kernels only, and makes DETR-R50 in FP16 2.3 to 2.4 times slower on an H100 (docs/gpu.md).
    """
    settings = {
        "device_id": str(options.device),
        "user_compute_stream": str(stream),
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(graph)),
    }
    if options.memory_bytes:
        settings["gpu_mem_limit"] = str(options.memory_bytes)
    return settings


def check_provider(runtime: Any) -> None:
    """Raise BackendError where ONNX Runtime fell back to the CPU instead of starting the CUDA provider."""
    running = runtime.get_providers()[0]
    if running != PROVIDER:
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} runs the graph by its {running}",
            expected=f"the {PROVIDER}",
            cause="its CUDA or cuDNN libraries were not found or do not fit, as it says on stderr",
            fix="pip install 'onnxruntime-gpu[cuda,cudnn]', or put the libraries of CUDA and cuDNN on LD_LIBRARY_PATH",
        )


def _values_decide(path: Path) -> str:
    """Return an operator whose output's size depends on values, or nothing; a damaged file is refused when loaded."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf and onnx raise a dozen kinds
        return ""
    nodes = chain(model.graph.node, *(function.node for function in model.functions))
    return next((node.op_type for node in nodes if node.op_type in _VALUES_DECIDE), "")


def _missing() -> tuple[str, str]:
    """Return why nothing can run here, and what to do; two empty texts where it can."""
    if PROVIDER not in onnxruntime.get_available_providers():
        reason = f"this build of ONNX Runtime {onnxruntime.__version__} has no CUDA provider"
        return (
            reason,
            "pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]' cuda-bindings",
        )
    reason = unavailable()
    return reason, "see nvidia-smi; a GPU with its driver is needed" if reason else ""


def _plain(path: Path, driver: Driver) -> Any:
    providers = [(PROVIDER, {"device_id": str(driver.device.number)})]
    made = onnxruntime.InferenceSession(str(path), providers=providers)
    check_provider(made)
    return made


def _prepare_runtime() -> None:
    """Load CUDA and cuDNN from the packages of pip, where they are installed so; silence what is no error."""
    onnxruntime.set_default_logger_severity(3)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def _quiet() -> Any:
    made = onnxruntime.SessionOptions()
    made.log_severity_level = 3  # what ONNX Runtime only warns about, verifying decides
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    return made
