"""The runtimes, as a table of strings: naming one loads it, listing them loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from vitesse.artifact import Artifact, Store
    from vitesse.backends.protocol import Availability, Backend, Built


@dataclass(frozen=True)
class Entry:
    """Where a runtime is wrapped, the package it needs, and how to install that.

    Args:
        home: what a run for this runtime measures portable ONNX files and the original with; "": ONNX Runtime, on a GPU
            with its CUDA provider.
        archive: the module that finds the engine files it keeps itself, by `newest_engine(folder, onnx_sha256)`. Such a
            runtime builds for named shapes: its backend has `build_for`, and `module` the `BuildOptions` of that.
    """

    module: str
    name: str
    package: str
    pip: str
    home: str = ""
    archive: str = ""


TABLE: Mapping[str, Entry] = {
    "onnxruntime": Entry(
        "vitesse.backends.onnxruntime", "OnnxRuntimeBackend", "onnxruntime", "pip install onnxruntime"
    ),
    "openvino": Entry(
        "vitesse.backends.openvino", "OpenVinoBackend", "openvino", "pip install 'vitesse[openvino]'"
    ),
    "cuda": Entry(
        "vitesse.backends.onnxruntime_cuda",
        "OnnxRuntimeCudaBackend",
        "cuda.bindings",
        "pip install 'vitesse[cuda]' (and no other build of onnxruntime beside it)",
    ),
    "tensorrt": Entry(
        "vitesse.backends.tensorrt.backend",
        "TensorRtBackend",
        "tensorrt",
        "pip install 'vitesse[gpu]' tensorrt",
    ),
    "tensorrt-rtx": Entry(
        "vitesse.backends.tensorrt.backend",
        "TensorRtRtxBackend",
        "tensorrt_rtx",
        "pip install 'vitesse[tensorrt-rtx]'",
    ),
    "torch-cuda": Entry(
        "vitesse.backends.torch_cuda.backend",
        "TorchCudaBackend",
        "torch",
        "pip install 'vitesse[torch-cuda]'",
        # PyTorch itself, operator by operator, because the CUDA build of ONNX Runtime may not be installed.
        home="torch-cuda",
        archive="vitesse.backends.torch_cuda.archive",
    ),
}

# Runtimes with an INT8 of their own: a function `quantize(artifact, store, feeds, *, ignored, images) -> Built`.
QUANTIZERS: Mapping[str, Entry] = {
    "openvino": Entry(
        "vitesse.backends.openvino_int8", "quantize", "nncf", "pip install 'vitesse[openvino-int8]'"
    ),
}

# The order is the order of trying; the first is always installed, as a dependency of the package.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "openvino"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "cuda": ("cuda",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "torch-cuda": ("torch-cuda",),
}

# Targets that need a GPU; they multiply 16 bits fastest, and their engines are made from any portable graph of a run.
GPUS = ("cuda", "tensorrt", "tensorrt-rtx", "torch-cuda")


def home_of(target: str) -> str:
    """Return the runtime that a run for `target` measures portable ONNX files and the original with.

    It is one on the same device: what an engine gains is gained over the original on the same GPU.
    """
    own = TABLE[target].home if target in TABLE else ""
    return own or ("cuda" if target in GPUS else "onnxruntime")


def own_engines(target: str) -> Callable[[Path, str], Artifact | None] | None:
    """Return what finds the engine files that a runtime keeps itself; None where it keeps none.

    It takes a folder and the sha256 of a graph, or "" for any, and returns the newest engine, or None.
    """
    archive = TABLE[target].archive if target in TABLE else ""
    if not archive:
        return None
    found: Callable[[Path, str], Artifact | None] = import_module(archive).newest_engine
    return found


def build_for(target: str, artifact: Artifact, store: Store, **options: object) -> Built:
    """Build with a runtime that keeps its own engine files, for the shapes that the options of its backend name.

    Raises:
        MissingExtra: its package is absent or does not load.
        BackendError, UsageError: as its `build_for` does.
    """
    made: Any = backend(target)
    built: Built = made.build_for(
        artifact, store, import_module(TABLE[target].module).BuildOptions(**options)
    )
    return built


def require(name: str) -> None:
    """Raise MissingExtra with the reason and the way out where a runtime cannot run here."""
    found = backend(name).probe()
    if not found.available:
        raise MissingExtra(
            f"the backend {name!r} cannot run here: {found.reason}",
            cause="a run measures every step where it is to be used",
            fix=found.fix,
        )


def backend(name: str) -> Backend:
    """Import and return a runtime.

    Raises:
        UsageError: no runtime of that name is wrapped; the message lists those that are.
        MissingExtra: its package is absent or does not load; the message has the pip line.
    """
    if name not in TABLE:
        raise UsageError(f"unknown backend {name!r}", expected=f"one of: {', '.join(TABLE)}")
    made: Backend = _named(TABLE[name], f"the backend {name!r}")()
    return made


def quantizer(name: str) -> Callable[..., Built]:
    """Import and return the INT8 quantiser of a runtime.

    Raises:
        UsageError: the runtime has none of its own.
        MissingExtra: its package is absent or does not load; the message has the pip line.
    """
    if name not in QUANTIZERS:
        raise UsageError(
            f"the backend {name!r} has no quantiser of its own", expected=f"one of: {', '.join(QUANTIZERS)}"
        )
    found: Callable[..., Built] = _named(QUANTIZERS[name], f"the INT8 of {name!r}")
    return found


def _named(entry: Entry, purpose: str) -> Any:
    if not _installed(entry.package):
        raise MissingExtra(f"{entry.package} is not installed", expected=f"it, for {purpose}", fix=entry.pip)
    try:
        module = import_module(entry.module)
    except ImportError as error:
        raise MissingExtra(
            f"{entry.package} is installed but does not load: {error}",
            cause="a missing system library, or a build for another platform or Python",
            fix=entry.pip.replace("pip install", "pip install --force-reinstall"),
        ) from error
    return getattr(module, entry.name)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is not there
        return False


def available() -> dict[str, Availability]:
    """Probe every wrapped runtime; never raises. What does not work here says why and how to get it."""
    from vitesse.backends.protocol import Availability

    rows: dict[str, Availability] = {}
    for name in TABLE:
        try:
            rows[name] = backend(name).probe()
        except MissingExtra as error:
            rows[name] = Availability(False, reason=error.what, fix=error.fix)
        except Exception as error:  # a diagnosis must outlive whatever a broken installation raises
            rows[name] = Availability(False, reason=f"{type(error).__name__}: {error}", fix=TABLE[name].pip)
    return rows


def targets(target: str) -> tuple[str, ...]:
    """Return the backends to try for a target, in order.

    `cpu` stands for every installed CPU runtime; a runtime's own name stands for itself, installed or not.

    Raises:
        UsageError: unknown target; the message lists the known ones.
    """
    if target not in TARGETS:
        raise UsageError(
            f"unknown target {target!r}",
            expected=f"one of: {', '.join(TARGETS)}",
            fix="see `vitesse doctor` for what works here",
        )
    names = TARGETS[target]
    return names if len(names) == 1 else tuple(name for name in names if _installed(TABLE[name].package))
