"""Every peer made ready to run: `session.run(feeds) → Outcome`, as the latency protocol wants it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from peers_models import PeerModel
from peers_table import BASELINE

from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Outcome, Session, Tensors
from vitesse.export.torch_onnx import Network
from vitesse.storage import sha256_of

NNCF_SCRIPT = Path(__file__).with_name("peers_nncf.py")
SOURCES = Path(__file__).resolve().parents[1] / "src"
# optimum-onnx gives ONNX Runtime's optimiser these for its level O3 (AutoOptimizationConfig.O3).
O3_LEVEL = 2


@dataclass(frozen=True)
class Setting:
    """What every candidate is made from: the network, its exported file, prepared images, and where files go."""

    model: PeerModel
    network: Network
    exported: Artifact
    feeds: Sequence[Tensors]
    folder: Path
    threads: int
    nncf_python: str

    @property
    def options(self) -> LoadOptions:
        """The thread count that all get."""
        return LoadOptions(threads=self.threads)


class TorchSession:
    """A torch module called with numpy arrays; the clock covers both conversions."""

    def __init__(self, module: Any, network: Network) -> None:
        self.module, self.network = module, network

    def run(self, feeds: Tensors) -> Outcome:
        """Run once."""
        start = perf_counter_ns()
        with torch.inference_mode():
            found = self.module(*(torch.from_numpy(np.asarray(feeds[name])) for name in self.network.inputs))
        answers = found if isinstance(found, tuple) else (found,)
        arrays = {name: one.numpy() for name, one in zip(self.network.outputs, answers, strict=False)}
        return Outcome(arrays, (perf_counter_ns() - start) / 1e6)


def torch_eager(given: Setting, _: ExitStack) -> TorchSession:
    """torch as it is."""
    return TorchSession(given.network.module, given.network)


def torch_compiled(given: Setting, _: ExitStack) -> TorchSession:
    """torch.compile with its defaults (inductor); compiled here, not in the warm-up."""
    session = TorchSession(torch.compile(given.network.module, dynamic=False), given.network)
    session.run(given.feeds[0])
    return session


def onnxruntime_default(given: Setting, stack: ExitStack) -> Session:
    """`InferenceSession(path)` on the exported file."""
    return plain(given.exported.path, given, stack)


def openvino_fp32(given: Setting, stack: ExitStack) -> Session:
    """OpenVINO on the exported file, static batch 1, float32."""
    return opened(replace(given.exported, backend="openvino"), given.options, stack)


def openvino_nncf(given: Setting, stack: ExitStack) -> Session:
    """nncf.quantize on the exported file, by the Python that has NNCF; then OpenVINO here."""
    arrays = given.folder / "calibration.npz"
    named = {f"{at}/{name}": one for at, feed in enumerate(given.feeds) for name, one in feed.items()}
    np.savez(arrays, **named)  # type: ignore[arg-type]
    command = [given.nncf_python, NNCF_SCRIPT, given.exported.path, arrays, given.folder]
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    if done.returncode:
        raise RuntimeError(f"NNCF failed: {done.stderr.strip().splitlines()[-1]}")
    made = wrapped(Path(done.stdout.strip().splitlines()[-1]), given.exported)
    return opened(replace(made, backend="openvino"), given.options, stack)


def o3(given: Setting, stack: ExitStack) -> Session:
    """The exported file through onnxruntime.transformers.optimizer, called as optimum-onnx 0.1.0 calls it for O3.

    optimum itself takes only models with a configuration of transformers, and of those no DETR.
    """
    options = FusionOptions("vit")
    options.enable_gelu_approximation, options.enable_embed_layer_norm = True, False
    optimised = optimize_model(
        str(given.exported.path),
        "vit",
        num_heads=given.model.heads,
        hidden_size=given.model.hidden,
        optimization_options=options,
        opt_level=O3_LEVEL,
        use_gpu=False,
        only_onnxruntime=False,
    )
    path = given.folder / "o3.onnx"
    optimised.save_model_to_file(str(path))
    return plain(path, given, stack)


def onnxruntime_static_int8(given: Setting, stack: ExitStack) -> Session:
    """onnxruntime.quantization.quantize_static with its defaults, the images given one by one."""
    path = given.folder / "static_int8.onnx"
    quantize_static(given.exported.path, path, _Reader(given.feeds))
    return plain(path, given, stack)


def plain(path: Path, given: Setting, stack: ExitStack) -> Session:
    """Load a file with ONNX Runtime's defaults, which take every core."""
    return opened(wrapped(path, given.exported), LoadOptions(plain=True), stack)


def opened(artifact: Artifact, options: LoadOptions, stack: ExitStack) -> Session:
    """Load an artifact on its runtime; `stack` closes it."""
    engine = stack.enter_context(backend(artifact.backend).load(artifact, options))
    return stack.enter_context(engine.session())


def wrapped(path: Path, like: Artifact) -> Artifact:
    """A file that another tool made, read as `like` is."""
    return Artifact(path, sha256_of(path), path.stat().st_size, like.spec, Provenance("peer"))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Tensors]) -> None:
        self._left: Iterator[Tensors] = iter(feeds)

    def get_next(self) -> Mapping[str, Any] | None:
        """The next feed, None at the end."""
        found = next(self._left, None)
        return None if found is None else dict(found)


PEERS: Mapping[str, Callable[[Setting, ExitStack], Any]] = {
    BASELINE: onnxruntime_default,
    "torch eager": torch_eager,
    "torch.compile": torch_compiled,
    "OpenVINO, FP32": openvino_fp32,
    "OpenVINO, NNCF INT8": openvino_nncf,
    "ONNX Runtime, optimum-onnx's O3 options": o3,
    "ONNX Runtime, static INT8 by its defaults": onnxruntime_static_int8,
}
