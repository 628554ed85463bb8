"""Where the time of a call goes, by operator type and by node, as the runtime itself reports it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitesse.artifact import Artifact
from vitesse.backends.protocol import Tensors
from vitesse.profile.recording import Kernel, record


@dataclass(frozen=True)
class OperatorTime:
    """One operator type: calls and milliseconds per run, share of the time in operators (0..1)."""

    operator: str
    calls: float
    ms: float
    share: float


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that ran: its name and operator, milliseconds per run, share of the time (0..1)."""

    node: str
    operator: str
    ms: float
    share: float


@dataclass(frozen=True)
class OperatorProfile:
    """Time by operator type, slowest first, and the slowest nodes.

    `operators_ms` is the sum over all operators of one run, `call_ms` the mean of the measured calls, which also
    has the time between operators; profiling itself slows small models down. `covered` = operators_ms / call_ms.
    """

    backend: str
    threads: int
    runs: int
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]
    operators_ms: float
    call_ms: float

    @property
    def covered(self) -> float:
        """Share of the call that the operators account for."""
        return self.operators_ms / self.call_ms

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "covered": self.covered}


def profile(
    artifact: Artifact, feeds: Sequence[Tensors], *, threads: int = 1, runs: int = 10, top: int = 20
) -> OperatorProfile:
    """Run `runs` times with the runtime's profiler on, after a warm-up that is not counted.

    Raises:
        DataError: no feeds.
        UsageError: Vitesse cannot read this runtime's operator times.
        BackendError: the runtime refuses to load or run.
    """
    kernels, calls_ms = record(artifact, feeds, threads=threads, runs=runs)
    return summed(artifact.backend, threads, kernels, calls_ms, top)


def summed(
    name: str, threads: int, kernels: Sequence[Kernel], calls_ms: Sequence[float], top: int = 20
) -> OperatorProfile:
    """Sum what was recorded on the runtime `name` by operator and by node."""
    by_operator: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        by_operator[kernel.operator].append(kernel)
    total = sum(kernel.ms for kernel in kernels)
    share = (lambda ms: ms / total) if total else (lambda ms: 0.0)
    operators = []
    for operator, found in by_operator.items():
        ms = sum(kernel.ms for kernel in found)
        operators.append(OperatorTime(operator, sum(kernel.calls for kernel in found), ms, share(ms)))
    nodes = [NodeTime(kernel.name, kernel.operator, kernel.ms, share(kernel.ms)) for kernel in kernels]
    return OperatorProfile(
        name,
        threads,
        len(calls_ms),
        tuple(sorted(operators, key=lambda row: -row.ms)),
        tuple(sorted(nodes, key=lambda row: -row.ms)[:top]),
        total,
        sum(calls_ms) / len(calls_ms),
    )
