"""The kernels of all steps compiled at once, before any is measured: step by step, most cores would wait for the last.

graph, in plain torch ──▶ problem of every step ──▶ its candidates prepared and run once, on as many threads as
                                                    there are cores ──▶ Triton keeps what it compiled
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import BoundedSemaphore

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.binding import Binder
from vitesse.backends.torch_cuda.candidates import PLAIN, Kernel, Run, Tactic
from vitesse.backends.torch_cuda.device import facts_of, working_on
from vitesse.backends.torch_cuda.problem import Problem
from vitesse.backends.torch_cuda.tactics import COMPILING, Choice, offered, ran_once, synchronise

# Libraries choose among what is compiled already; Triton compiles.
_COMPILED = "triton."
# A candidate that waits keeps the tensors of its step in memory.
_WAITING = 2 * COMPILING


def compile_ahead(binder: Binder, graph: ir.Graph, feeds: Mapping[str, Tensor]) -> None:
    """Compile what `binder` will measure in a graph, as far as memory holds its steps in plain torch.

    Raises:
        BackendError: a candidate broke the GPU's context.
    """
    # The pool's end waits for all that it was asked.
    with binder.cache.spent.on("compiling"), ThreadPoolExecutor(COMPILING) as threads:
        ahead = _Ahead(**vars(binder), threads=threads)
        # The build itself says which shape does not fit, and takes less memory than this.
        with suppress(torch.OutOfMemoryError):
            for _ in ahead.bound(graph, feeds):
                pass
    synchronise(binder.device, "a step that was compiled ahead")


@dataclass(frozen=True)
class _Ahead(Binder):
    """Computes every step in plain torch, and has the candidates of those that are new compiled meanwhile."""

    threads: ThreadPoolExecutor = field(kw_only=True)
    _seen: set[str] = field(default_factory=set)
    _room: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(_WAITING))

    def chosen(self, problem: Problem) -> tuple[Choice, Run]:
        """Ask for the candidates, and for those of the parts; the choice is the plain function."""
        signature = problem.signature
        if signature not in self._seen and signature not in self.cache.choices:
            self._seen.add(signature)
            pairs, _ = offered(problem, self.kernels, facts_of(self.device), self.most, self.chosen)
            for kernel, tactic in pairs:
                if kernel.name.startswith(_COMPILED):
                    self._room.acquire()
                    self.threads.submit(self._run_once, problem, kernel, tactic)
        return Choice(PLAIN, guessed=True), problem.plain

    def _run_once(self, problem: Problem, kernel: Kernel, tactic: Tactic) -> None:
        # What fails here fails again when it shall be measured, and is told there.
        try:
            with working_on(self.device):
                ran_once(problem, kernel, tactic)
        finally:
            self._room.release()
