"""PyTorch on an NVIDIA GPU as a backend: builds engine files by measuring, loads them and bare ONNX files."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import Availability, Built, LoadOptions
from vitesse.backends.refusal import refusal
from vitesse.backends.torch_cuda.archive import SUFFIX, unpack
from vitesse.backends.torch_cuda.building import BuildOptions, build_engine
from vitesse.backends.torch_cuda.candidates import Kernels
from vitesse.backends.torch_cuda.device import LEAST_CAPABILITY, device_of, differences, versions
from vitesse.backends.torch_cuda.engine import Graph, TorchCudaEngine
from vitesse.backends.torch_cuda.tactics import TacticCache
from vitesse.errors import BackendError, ModelError, StorageError

_PIP = "pip install 'vitesse[torch-cuda]'"
# A newer driver runs what an older one ran, as fast.
_HARMLESS = frozenset({"driver"})


class TorchCudaBackend:
    """PyTorch with fused kernels on one NVIDIA GPU.

    Args:
        kind: "cpu" runs the whole path on the CPU in plain torch, for tests; it is never offered.
        kernels: to choose from; None = all that load here.
    """

    name = "torch-cuda"
    distrusts: tuple[str, ...] = ()

    def __init__(self, kind: str = "cuda", kernels: Kernels | None = None) -> None:
        self._kind, self._kernels = kind, kernels

    def probe(self) -> Availability:
        """Report version and GPU, or what is missing: a CUDA build of torch, the driver, a GPU that is new enough."""
        reason, fix = _missing()
        if reason:
            return Availability(False, torch.__version__, reason=reason, fix=fix)
        capability = torch.cuda.get_device_capability(0)
        newer = [name for name, since in (("bf16", (8, 0)), ("fp8", (8, 9))) if capability >= since]
        device = f"GPU: {torch.cuda.get_device_name(0)}"
        return Availability(True, torch.__version__, (device,), ("fp32", "fp16", *newer))

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Choose kernels for the GPU that is here by measuring; batches 1, 8 and 32 where the batch is free.

        Raises:
            as `build_for`.
        """
        return self.build_for(artifact, store, BuildOptions())

    def build_for(self, artifact: Artifact, store: Store, options: BuildOptions) -> Built:
        """Build for the shapes that the options name.

        Raises:
            BackendError: no GPU; a damaged file; an operator that there is no function for, named; a plan that does
                not compute what the graph says.
            UsageError: more than the batch is free, and no shapes were given.
        """
        self._check_device(artifact.path)
        model = _read(artifact.path)
        return build_engine(artifact, model, store, options, device_of(self._kind), self._kernels)

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> TorchCudaEngine:
        """Load an engine file, or an ONNX file, whose tactics are then guessed and not measured.

        An engine of another GPU or other versions loads too: its tactics become guesses, each of which is checked
        before it is taken, and the engine's `notes` say what differs and how to build it again.

        `plain` is PyTorch eager, operator by operator; `reference` the same without TF32.

        Raises:
            BackendError: no GPU; the file is gone, damaged or foreign; an operator that there is no function for.
        """
        options = options or LoadOptions()
        if artifact.path.suffix == SUFFIX:
            graph = self._opened(artifact.path, options)
        else:
            graph = Graph(artifact.path, _read(artifact.path))
        self._check_device(artifact.path)
        return TorchCudaEngine(graph, options, device_of(self._kind, options.device), found=self._kernels)

    def _opened(self, path: Path, options: LoadOptions) -> Graph:
        archive = unpack(path)
        manifest = archive.manifest
        try:
            cache = TacticCache.from_json(archive.tactics)
        except ModelError as error:
            raise BackendError(f"{path}: {error.what}", cause=error.cause, fix=manifest.rebuild) from error
        self._check_device(path)
        here = versions(device_of(self._kind, options.device))
        harmless = {name: here.get(name, "") for name in _HARMLESS}
        differing = differences({**manifest.made_on, **harmless}, here)
        notes: list[str] = []
        if differing:
            cache = replace(cache, trusted=False)
            said = f"built elsewhere ({'; '.join(differing)})"
            notes.append(f"{said}: its tactics are guesses here; build it again: {manifest.rebuild}")
        else:
            notes += _merged(archive.kernels)
        model = _parsed(archive.model, path)
        return Graph(path, model, cache, manifest.shapes, tuple(notes), manifest.rebuild)

    def _check_device(self, path: Path) -> None:
        reason, fix = ("", "") if self._kind == "cpu" else _missing()
        if reason:
            raise BackendError(f"{path} cannot run on {self.name}: {reason}", fix=fix)


def _missing() -> tuple[str, str]:
    """Return why nothing can run here, and what to do; two empty texts where it can."""
    if platform.system() != "Linux":
        return (
            f"PyTorch's Triton kernels are for Linux, this is {platform.system()}",
            "use Linux, or --target cuda",
        )
    if torch.version.cuda is None:
        return (
            f"this build of PyTorch {torch.__version__} is for the CPU",
            f"{_PIP}, from PyTorch's index for CUDA",
        )
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU or no driver", "see nvidia-smi; a GPU with its driver is needed"
    capability = torch.cuda.get_device_capability(0)
    if capability < LEAST_CAPABILITY:
        least, here = (".".join(map(str, one)) for one in (LEAST_CAPABILITY, capability))
        return (
            f"compute capability {here} ({torch.cuda.get_device_name(0)}), {least} is needed",
            "use --target cuda",
        )
    return "", ""


def _read(path: Path) -> onnx.ModelProto:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refusal(f"PyTorch {torch.__version__}", "reading", path, error) from error
    return _parsed(content, path)


def _parsed(content: bytes, path: Path) -> onnx.ModelProto:
    """Parse a graph; an empty file is a valid message that says nothing."""
    try:
        model = onnx.load_from_string(content)
        if not model.graph.output:
            raise ValueError("it holds no graph")
        _check_whole(model)
        return model
    except Exception as error:  # protobuf and onnx raise a dozen kinds
        raise refusal(f"PyTorch {torch.__version__}", "reading", path, error) from error


def _check_whole(model: onnx.ModelProto) -> None:
    """Raise where a value is read that nothing makes, as in a file that was cut off between two messages."""
    graph = model.graph
    made = {""} | {value.name for value in (*graph.input, *graph.initializer)}
    made |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    if read - made:
        raise ValueError(f"nothing makes {sorted(read - made)[0]!r}")


def _merged(files: Mapping[str, bytes]) -> list[str]:
    """Put compiled kernels where Triton finds them; what prevents that costs time alone, and is said."""
    if not files:
        return []
    try:
        # Imported here because Triton may be absent: plans then have no kernels of it.
        from vitesse.backends.torch_cuda.kernels.binaries import merge

        merge(files)
    except (ImportError, ValueError, StorageError) as error:
        return [f"kernels are compiled again, because those of the file cannot be used: {error}"]
    return []
