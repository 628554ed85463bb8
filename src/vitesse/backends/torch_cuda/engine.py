"""A loaded graph: constants on the device once, one plan for each set of input shapes, shared by all sessions."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import onnx
import onnx_ir as ir
import torch

from vitesse.backends.closing import Closing
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.refusal import refusal
from vitesse.backends.torch_cuda.candidates import Kernels, kernels
from vitesse.backends.torch_cuda.device import working_on
from vitesse.backends.torch_cuda.execute import Plain
from vitesse.backends.torch_cuda.operators import operator_of
from vitesse.backends.torch_cuda.plan import Making, Plan
from vitesse.backends.torch_cuda.session import Program, Sizes, TorchCudaSession
from vitesse.backends.torch_cuda.specialise import specialise
from vitesse.backends.torch_cuda.tactics import TacticCache
from vitesse.backends.torch_cuda.weights import Constants
from vitesse.errors import BackendError, ModelError, VitesseError
from vitesse.sources.signature import graph_inputs, graph_outputs

# Shapes whose plans an engine keeps; sessions that run one that was let go keep it alive.
MOST_PLANS = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """What an engine is made from.

    Args:
        path: the file, for messages.
        model: the ONNX graph.
        cache: measured tactics; empty for a bare ONNX file.
        shapes: that were planned for at the build.
        notes: what differs between the build and this machine.
        rebuild: the command that plans for this machine.
    """

    path: Path
    model: onnx.ModelProto
    cache: TacticCache = field(default_factory=TacticCache)
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    rebuild: str = ""


class TorchCudaEngine(Closing):
    """Loaded weights.

    Attributes:
        notes: why runs may be slower than they should be: another GPU or version than that of the build, a shape that
            nobody planned for, an output whose shape depends on values.
    """

    def __init__(
        self, graph: Graph, options: LoadOptions, device: torch.device, *, found: Kernels | None = None
    ) -> None:
        """Take a graph; plans are made when their shapes are first run.

        Args:
            found: the kernels to choose from; None = all that load here.

        Raises:
            BackendError: an operator that there is no function for; named.
        """
        self.path, self.device = graph.path, device
        self.tf32 = options.tf32 and not options.reference
        self.notes: list[str] = list(graph.notes)
        self._graph, self._options = graph, options
        self._found = found
        self.inputs, self.outputs = graph_inputs(graph.model), graph_outputs(graph.model)
        self._model = ir.from_proto(graph.model)
        _check_operators(self._model, graph.path)
        self.constants = Constants(device)
        self._programs: OrderedDict[Sizes, tuple[Program, bool]] = OrderedDict()
        self._making = Lock()
        self._closed = False
        self._sessions: weakref.WeakSet[TorchCudaSession] = weakref.WeakSet()

    def session(self) -> TorchCudaSession:
        """Open a session: a stream, its buffers and CUDA graphs; any thread may ask."""
        self.check_open()
        made = TorchCudaSession(self)
        self._sessions.add(made)
        return made

    def program(self, sizes: Sizes) -> tuple[Program, bool]:
        """Return what runs inputs of these shapes, in the graph's order, and whether it may be captured.

        Raises:
            DataError: the graph does not take such shapes. ModelError: an operator's form is not supported.
        """
        with self._making:
            if sizes not in self._programs:
                self._programs[sizes] = self._made(sizes)
                while len(self._programs) > MOST_PLANS:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(sizes)
            return self._programs[sizes]

    def plan(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
        """Return the plan for these input shapes, by name, to describe it.

        Raises:
            BackendError: runs of these shapes have none: loaded with `plain`, or a shape depends on values.
        """
        self.check_open()
        with working_on(self.device):
            found, _ = self.program(tuple(tuple(shapes[info.name]) for info in self.inputs))
        if not isinstance(found, Plan):
            raise BackendError(
                f"{self.path} has no plan for {dict(shapes)}",
                expected="an engine loaded without LoadOptions.plain or .reference",
                cause="; ".join(self.notes),
            )
        return found

    def remark(self, text: str) -> None:
        """Note once what makes runs slower, and log it."""
        if text not in self.notes:
            self.notes.append(text)
            _log.warning("%s: %s", self.path.name, text)

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        if self._closed:
            raise BackendError("this engine is closed", expected="an open one", fix="backend.load(artifact)")

    def failed(self, error: Exception) -> VitesseError:
        """Word what torch or a kernel raised while running."""
        if isinstance(error, torch.OutOfMemoryError):
            return BackendError(
                f"PyTorch {torch.__version__} has not enough memory on the GPU to run {self.path}",
                cause=" ".join(str(error).split())[:300],
                fix="smaller batches, fewer sessions, or FP16",
            )
        return refusal(f"PyTorch {torch.__version__}", "running", self.path, error)

    def close(self) -> None:
        """Close the sessions made from it, release plans and constants."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as leaving:
            leaving.callback(self.constants.clear)
            leaving.callback(self._programs.clear)
            for session in tuple(self._sessions):
                leaving.callback(session.close)

    def _made(self, sizes: Sizes) -> tuple[Program, bool]:
        shapes = {info.name: size for info, size in zip(self.inputs, sizes, strict=True)}
        try:
            if self._options.plain or self._options.reference:
                return Plain(specialise(self._model, shapes), self.device), False
            making = Making(kernels=self._found or kernels())
            plan = Plan(self._model, shapes, self.device, self._graph.cache, self.constants, making)
        except ModelError as error:
            self.remark(f"runs in plain PyTorch, operator by operator: {error.what}")
            return Plain(self._model, self.device), False
        if self._graph.cache.choices and plan.guessed:
            self.remark(
                f"{_text(shapes)} was not planned for: {len(plan.guessed)} of {len(plan.describe())} steps run with "
                f"a tactic of another size; plan it: {self._graph.rebuild or 'vitesse build --shapes'}"
            )
        return plan, self._options.cuda_graph


def _check_operators(model: ir.Model, path: Path) -> None:
    try:
        for node in model.graph:
            operator_of(node)
    except ModelError as error:
        raise BackendError(
            f"{path}: {error.what}", expected=error.expected, cause=error.cause, fix=error.fix
        ) from error


def _text(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items())
