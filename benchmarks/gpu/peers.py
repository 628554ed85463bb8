"""Every other way to run a model that is compared: torch, its compiler's modes, ONNX Runtime's CUDA provider."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.artifact import Artifact, Store
from vitesse.backends import backend, require
from vitesse.backends.protocol import LoadOptions

from .models import INPUT, Model

EAGER, GRAPH = "torch eager", "torch + CUDA graph"
MODES = {
    "torch.compile": "default",
    "torch.compile reduce-overhead": "reduce-overhead",
    "torch.compile max-autotune": "max-autotune",
}
ORT_PLAIN, ORT_OURS = "ONNX Runtime CUDA", "Vitesse cuda"


class OutOfTime(BaseException):
    """A candidate is not ready in time. No Exception: torch wraps those in its own."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What every candidate of a group is made from.

    Args:
        module: the whole model in float32, on the CPU.
        images: float32 [batch, 3, H, W] on `device`.
        dtype: of the peers.
        graph: the fused ONNX graph of the same precision, for peers that run ONNX; None where none was made.
        limit_s: seconds that a candidate may take to get ready.
    """

    model: Model
    module: nn.Module
    images: Tensor
    dtype: torch.dtype
    device: torch.device
    graph: Artifact | None
    folder: Path
    limit_s: float


class Candidate:
    """A function of nothing that enqueues one call on `stream` and gives tensors, which the next call overwrites.

    `steps`: what a plan says of its nodes: step, tactic, and what the tactic took when it was chosen.
    """

    def __init__(
        self,
        enqueue: Callable[[], tuple[Tensor, ...]],
        stream: Any,
        about: Mapping[str, Any] | None = None,
        steps: Callable[[], list[dict[str, Any]]] = list,
    ):
        self._enqueue, self.stream, self.about, self.steps = enqueue, stream, dict(about or {}), steps

    def call(self) -> None:
        self._enqueue()

    def outputs(self) -> list[Tensor]:
        """Of one call, float32, copied to the CPU."""
        made = self._enqueue()
        if self.stream is not None:
            torch.cuda.synchronize()
        return [tensor.detach().float().cpu() for tensor in made]


Opener = Callable[[Setting], AbstractContextManager[Candidate]]


def prepared(given: Setting) -> tuple[nn.Module, Tensor]:
    """The module and its images in the peers' type, channels_last where convolutions gain by it."""
    module = copy.deepcopy(given.module).to(given.device, given.dtype)
    images = given.images.to(given.dtype)
    if given.model.convolutional:
        # torch has no overload for the format alone
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    return module, images


def stream_of(given: Setting) -> Any:
    return torch.cuda.current_stream() if given.device.type == "cuda" else None


@contextmanager
def eager(given: Setting) -> Iterator[Candidate]:
    module, images = prepared(given)
    with torch.inference_mode():
        yield Candidate(lambda: _tuple(module(images)), stream_of(given))


@contextmanager
def graphed(given: Setting) -> Iterator[Candidate]:
    """The eager module captured as one CUDA graph."""
    if given.device.type != "cuda":
        raise RuntimeError("there are no CUDA graphs on the CPU")
    module, images = prepared(given)
    with torch.inference_mode():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                module(images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = _tuple(module(images))

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return made

        yield Candidate(replay, stream_of(given))


@contextmanager
def compiled(mode: str, given: Setting) -> Iterator[Candidate]:
    """torch.compile for this one shape; compiled here, or taken from its caches, within the time limit."""
    module, images = prepared(given)
    with torch.inference_mode():
        optimised = torch.compile(module, mode=mode, dynamic=False)
        with within(given.limit_s):
            for _ in range(3):  # compiled, recorded, replayed
                optimised(images)
        yield Candidate(lambda: _tuple(optimised(images)), stream_of(given))


@contextmanager
def onnxruntime_plain(given: Setting) -> Iterator[Candidate]:
    """ONNX Runtime's CUDA provider as a user has it: default options, bound to buffers on the GPU."""
    require("cuda")
    import onnxruntime

    path = graph_of(given).path
    # On a stream that the events are recorded on; without one, ONNX Runtime takes its own.
    stream: Any = torch.cuda.Stream(given.device)  # type: ignore[no-untyped-call]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"user_compute_stream": str(stream.cuda_stream)})
    session = onnxruntime.InferenceSession(str(path), settings, providers=[provider])
    images, number = given.images.contiguous(), given.device.index or 0
    fed = images.cpu().numpy()
    shown = session.run(None, {INPUT: fed})
    made = tuple(torch.from_numpy(array).to(given.device) for array in shown)
    binding = session.io_binding()
    binding.bind_input(INPUT, "cuda", number, fed.dtype, fed.shape, images.data_ptr())
    for entry, array, tensor in zip(session.get_outputs(), shown, made, strict=True):
        binding.bind_output(entry.name, "cuda", number, array.dtype, array.shape, tensor.data_ptr())
    torch.cuda.synchronize()

    def run() -> tuple[Tensor, ...]:
        session.run_with_iobinding(binding)
        return made

    yield Candidate(run, stream)


@contextmanager
def onnxruntime_ours(given: Setting) -> Iterator[Candidate]:
    """ONNX Runtime's CUDA provider on the fused graph, as Vitesse's target `cuda` runs it."""
    require("cuda")
    artifact = backend("cuda").build(graph_of(given), Store(given.folder / "ort")).artifact
    with (
        backend("cuda").load(artifact, LoadOptions(cuda_graph=True)) as engine,
        engine.session() as session,
    ):
        runner: Any = session

        def run() -> tuple[Tensor, ...]:
            # It waits for what is on the current stream, and the current stream for it.
            made = runner.run_on_device({INPUT: given.images})
            return tuple(torch.from_dlpack(made[one.name]) for one in engine.outputs)

        yield Candidate(run, stream_of(given))


def graph_of(given: Setting) -> Artifact:
    if given.graph is None:
        raise RuntimeError("no graph of this precision was made")
    return given.graph


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """Raise OutOfTime in here after so many seconds; main thread only."""

    def over(_: int, __: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


PEERS: Mapping[str, Opener] = {
    EAGER: eager,
    GRAPH: graphed,
    **{label: partial(compiled, mode) for label, mode in MODES.items()},
    ORT_PLAIN: onnxruntime_plain,
    ORT_OURS: onnxruntime_ours,
}


def _tuple(made: Any) -> tuple[Tensor, ...]:
    return tuple(made) if isinstance(made, tuple | list) else (made,)
