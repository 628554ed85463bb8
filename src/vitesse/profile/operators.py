"""Where the time of a call goes, by operator type and by node, as the runtime itself reports it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Tensors
from vitesse.errors import DataError, UsageError

_WARM_UP = 3


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
    if not feeds:
        raise DataError("there is nothing to feed the model", expected="at least one image")
    readers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if artifact.backend not in readers:
        raise UsageError(
            f"no operator profile for the backend {artifact.backend!r}",
            expected=f"one of: {', '.join(readers)}",
        )
    events, calls_ms = readers[artifact.backend](artifact, feeds, threads, runs)
    return _summed(artifact.backend, threads, events, calls_ms, top)


Event = tuple[str, str, float]  # operator type, node name, milliseconds


def _onnxruntime(
    artifact: Artifact, feeds: Sequence[Tensors], threads: int, runs: int
) -> tuple[list[Event], list[float]]:
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        options = LoadOptions(threads=threads, profile_to=str(Path(folder) / "profile"))
        engine: Any
        with backend("onnxruntime").load(artifact, options) as engine, engine.session() as session:
            for turn in range(_WARM_UP):
                session.run(feeds[turn % len(feeds)])
            times = [session.run(feeds[turn % len(feeds)]).host_ms for turn in range(runs)]
            written = json.loads(engine.end_profile().read_text())
    return list(_kernels(written, runs)), times


def _kernels(written: Iterable[dict[str, Any]], runs: int) -> Iterable[Event]:
    """Operator events of the last `runs` runs; the profile is in order of time, `dur` in microseconds.

    A `model_run` event ends each run but is stamped with its begin, as every event is.
    """
    whole = sorted(event["ts"] for event in written if event.get("name") == "model_run")
    since = whole[-runs]
    for event in written:
        is_kernel = event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time")
        if is_kernel and event["ts"] >= since:
            name = event["name"].removesuffix("_kernel_time")
            yield event["args"]["op_name"], name, event["dur"] / 1e3


def _openvino(
    artifact: Artifact, feeds: Sequence[Tensors], threads: int, runs: int
) -> tuple[list[Event], list[float]]:
    options = LoadOptions(threads=threads, profile_to="counters")
    session: Any
    with backend("openvino").load(artifact, options) as engine, engine.session() as session:
        for turn in range(_WARM_UP):
            session.run(feeds[turn % len(feeds)])
        before = session.operator_times()
        times = [session.run(feeds[turn % len(feeds)]).host_ms for turn in range(runs)]
        after = session.operator_times()
    return list(_without_warm_up(before, after, runs)), times


def _without_warm_up(before: Sequence[Event], after: Sequence[Event], runs: int) -> Iterable[Event]:
    """Times of the measured runs alone, out of two averages that both hold the warm-up; one event per run."""
    for (operator, node, early), (_, _, late) in zip(before, after, strict=True):
        ms = late + (late - early) * _WARM_UP / runs
        if ms > 0:
            yield from [(operator, node, ms)] * runs


def _summed(
    name: str, threads: int, events: Sequence[Event], calls_ms: Sequence[float], top: int
) -> OperatorProfile:
    runs = len(calls_ms)
    by_operator: dict[str, list[float]] = defaultdict(list)
    by_node: dict[tuple[str, str], float] = defaultdict(float)
    for operator, node, ms in events:
        by_operator[operator].append(ms)
        by_node[node, operator] += ms
    total = sum(ms for _, _, ms in events)
    share = (lambda ms: ms / total) if total else (lambda ms: 0.0)
    operators = [
        OperatorTime(operator, len(times) / runs, sum(times) / runs, share(sum(times)))
        for operator, times in by_operator.items()
    ]
    nodes = [NodeTime(node, operator, ms / runs, share(ms)) for (node, operator), ms in by_node.items()]
    return OperatorProfile(
        name,
        threads,
        runs,
        tuple(sorted(operators, key=lambda row: -row.ms)),
        tuple(sorted(nodes, key=lambda row: -row.ms)[:top]),
        total / runs,
        sum(calls_ms) / runs,
    )
