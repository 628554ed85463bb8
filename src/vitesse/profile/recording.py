"""What a runtime ran and how long each kernel took, with what ties a kernel to the graph it was made from.

Runtimes fuse, rename and insert nodes. ONNX Runtime can save the graph it runs, where a tensor that survived keeps
its name; OpenVINO keeps with every node the names of those it was made of.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import onnx

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Outcome, Tensors
from vitesse.errors import DataError, UsageError

WARM_UP = 3
# Rows of ORT's and OpenVINO's own making: `relu_3_nchwc`, `Conv_7/WithoutBiases`, `ReorderInput_token_35`.
_ADDED = re.compile(r"(_nchwc|_nhwc|_token_\d+|/WithoutBiases|/fq_\w+)$")


@dataclass(frozen=True)
class Kernel:
    """One node of the graph that ran.

    Args:
        name: as the runtime calls it.
        ms, calls: per run, mean of the recorded runs.
        origins: names of tensors and nodes of the given graph that it may compute, the best first.
        sources: names of the kernels it reads from.
    """

    name: str
    operator: str
    ms: float
    calls: float
    origins: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class Recorder(Protocol):
    """A profiled session: warm up, `start`, run, and then `kernels` of what ran since."""

    def run(self, feeds: Tensors) -> Outcome:
        """Run once."""
        ...

    def start(self) -> None:
        """Forget what ran before."""
        ...

    def kernels(self) -> tuple[Kernel, ...]:
        """Return the kernels of the runs since `start`, in the order of execution; ends the recording."""
        ...


@contextmanager
def recorder(artifact: Artifact, threads: int) -> Iterator[Recorder]:
    """Load an artifact with its runtime's profiler on.

    Raises:
        UsageError: Vitesse cannot read this runtime's operator times.
        BackendError: the runtime refuses to load.
    """
    kinds: dict[str, Callable[[Any, Any, str], Recorder]] = {
        "onnxruntime": _OnnxRuntimeRecorder,
        "openvino": _OpenVinoRecorder,
    }
    if artifact.backend not in kinds:
        raise UsageError(
            f"no operator profile for the backend {artifact.backend!r}",
            expected=f"one of: {', '.join(kinds)}",
        )
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        prefix = str(Path(folder) / "profile")
        options = LoadOptions(threads=threads, profile_to=prefix)
        named = _all_named(artifact, Path(folder))
        with backend(artifact.backend).load(named, options) as engine, engine.session() as session:
            yield kinds[artifact.backend](engine, session, prefix)


def _all_named(artifact: Artifact, folder: Path) -> Artifact:
    """Return the artifact, or a copy in which every node has a name: a kernel is known by it alone."""
    if artifact.path.suffix != ".onnx":
        return artifact
    try:
        model = onnx.load(artifact.path)
    except Exception:  # the runtime says better what is wrong with it
        return artifact
    unnamed = [node for node in model.graph.node if not node.name]
    if not unnamed:
        return artifact
    for at, node in enumerate(unnamed):
        node.name = f"{node.op_type}:{at}"
    path = folder / "named.onnx"
    onnx.save(model, path)
    return replace(artifact, path=path)


def record(
    artifact: Artifact, feeds: Sequence[Tensors], *, threads: int, runs: int
) -> tuple[tuple[Kernel, ...], list[float]]:
    """Run `runs` times after a warm-up that is not counted; return the kernels and each call's milliseconds.

    Raises:
        DataError: no feeds.
        UsageError, BackendError: as `recorder`.
    """
    if not feeds:
        raise DataError("there is nothing to feed the model", expected="at least one image")
    with recorder(artifact, threads) as recording:
        for turn in range(WARM_UP):
            recording.run(feeds[turn % len(feeds)])
        recording.start()
        calls_ms = [recording.run(feeds[turn % len(feeds)]).host_ms for turn in range(runs)]
        return recording.kernels(), calls_ms


class _OnnxRuntimeRecorder:
    """Reads the trace that ONNX Runtime writes at the end."""

    def __init__(self, engine: Any, session: Any, prefix: str) -> None:
        self._engine, self._session = engine, session
        self._prefix, self._runs = prefix, 0

    def run(self, feeds: Tensors) -> Outcome:
        self._runs += 1
        outcome: Outcome = self._session.run(feeds)
        return outcome

    def start(self) -> None:
        self._runs = 0

    def kernels(self) -> tuple[Kernel, ...]:
        from vitesse.backends.onnxruntime import RUNNING_GRAPH

        written = json.loads(self._engine.end_profile().read_text())
        graph = onnx.load(f"{self._prefix}{RUNNING_GRAPH}", load_external_data=False).graph
        made_by = {output: node.name for node in graph.node for output in node.output if output}
        nodes = {node.name: node for node in graph.node}
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for operator, name, ms in _kernel_events(written, self._runs):
            times[name, operator].append(ms)
        return tuple(
            Kernel(
                name,
                operator,
                sum(found) / self._runs,
                len(found) / self._runs,
                _origins(nodes, name),
                tuple(made_by[one] for one in _inputs(nodes, name) if one in made_by),
            )
            for (name, operator), found in times.items()
        )


def _inputs(nodes: Mapping[str, onnx.NodeProto], name: str) -> Sequence[str]:
    return nodes[name].input if name in nodes else ()


def _origins(nodes: Mapping[str, onnx.NodeProto], name: str) -> tuple[str, ...]:
    outputs = [output for output in nodes[name].output if output] if name in nodes else []
    return (*outputs, name, *(_ADDED.sub("", one) for one in (name, *outputs)))


def _kernel_events(written: Iterable[dict[str, Any]], runs: int) -> Iterator[tuple[str, str, float]]:
    """Operator, name and milliseconds of the kernels of the last `runs` runs; `dur` is in microseconds.

    The trace is in order of time; a `model_run` event ends each run but is stamped with its begin, as every event is.
    """
    written = list(written)
    whole = sorted(event["ts"] for event in written if event.get("name") == "model_run")
    since = whole[-runs]
    for event in written:
        is_kernel = event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time")
        if is_kernel and event["ts"] >= since:
            yield event["args"]["op_name"], event["name"].removesuffix("_kernel_time"), event["dur"] / 1e3


class _OpenVinoRecorder:
    """Reads counters that OpenVINO averages over all runs, and takes the warm-up out of them."""

    def __init__(self, engine: Any, session: Any, prefix: str) -> None:
        self._session = session
        self._runs = self._warm_up = 0
        self._before: tuple[tuple[str, str, float], ...] = ()

    def run(self, feeds: Tensors) -> Outcome:
        self._runs += 1
        outcome: Outcome = self._session.run(feeds)
        return outcome

    def start(self) -> None:
        self._warm_up, self._runs = self._runs, 0
        self._before = self._session.operator_times() if self._warm_up else ()

    def kernels(self) -> tuple[Kernel, ...]:
        after = self._session.operator_times()
        early = [ms for _, _, ms in self._before] or [0.0] * len(after)
        graph = {node.get_friendly_name(): node for node in self._session.running_graph().get_ops()}
        times = {
            name: (operator, late + (late - before) * self._warm_up / self._runs)
            for (operator, name, late), before in zip(after, early, strict=True)
        }
        took = {name for name, (_, ms) in times.items() if ms > 0}
        return tuple(
            Kernel(name, operator, ms, 1.0, _made_of(graph.get(name), name), _sources(graph.get(name), took))
            for name, (operator, ms) in times.items()
            if name in took
        )


def _made_of(node: Any, name: str) -> tuple[str, ...]:
    """Names of the nodes of the given graph that OpenVINO made a node of, and its own."""
    notes = {} if node is None else node.get_rt_info()
    originals = notes["originalLayersNames"].astype(str) if "originalLayersNames" in notes else ""
    names = [*filter(None, originals.split(",")), name]
    return (*names, *(_ADDED.sub("", one) for one in names))


def _sources(node: Any, took: set[str]) -> tuple[str, ...]:
    """Nodes that took time and whose results a node reads, seen through those that took none, such as Reshape."""
    found, seen, todo = [], set(), [] if node is None else [node]
    while todo:
        for value in todo.pop().input_values():
            source = value.get_node()
            name = source.get_friendly_name()
            if name in took:
                found.append(name)
            elif name not in seen:
                seen.add(name)
                todo.append(source)
    return tuple(dict.fromkeys(found))
