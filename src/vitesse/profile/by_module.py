"""Time, operations, bytes and parameters by part and module of the network, and the time of what lies round it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path as File
from typing import Any

import onnx

from vitesse.artifact import Artifact
from vitesse.data.images import ImageSource
from vitesse.errors import ModelError, UsageError
from vitesse.profile.attribution import Matched, attribute, matched_ms
from vitesse.profile.calls import Calls, profiled_calls, unprofiled_calls
from vitesse.profile.costs import Cost, costs_of, total
from vitesse.profile.families import family
from vitesse.profile.modules import Found, Modules, Place, modules_of
from vitesse.profile.operators import OperatorProfile, summed
from vitesse.profile.parts import FLOW, Part
from vitesse.profile.recording import Kernel
from vitesse.scopes import Path

COPIES = frozenset({"layout"})  # families of operators that move numbers and compute none
# A module deeper than this share of its part's nodes is where the part begins to branch.
_TRUNK_SHARE = 0.8


class Kind(StrEnum):
    """Who spends a row's time."""

    MODEL = "model"  # operators of the graph
    RUNTIME = "runtime"  # between the operators of a call
    VITESSE = "vitesse"  # before and after the call


@dataclass(frozen=True)
class ModuleRow:
    """One part, or module of a part.

    Args:
        part: `backbone`, `encoder`, …; `not attributed`; or what Vitesse or the runtime does.
        module: dotted name from the outside in; empty for a whole part, or what belongs to none of its modules.
        ms: mean per image, with the runtime's profiler on.
        share: of all rows but the runtime's, 0..1; None for the runtime's, most of which is the profiler itself.
        copies_ms: of `ms`, in operators that only move numbers.
        cost: by the shapes of the graph; None where the row is no part of it.
    """

    kind: Kind
    part: str
    module: str
    ms: float
    share: float | None
    copies_ms: float = 0.0
    cost: Cost | None = None

    @property
    def gflops_per_s(self) -> float | None:
        """Operations per second, in billions; None without operations or time."""
        return self.cost.flops / self.ms / 1e6 if self.cost and self.cost.flops and self.ms else None


@dataclass(frozen=True)
class ModuleProfile:
    """Where the time of one image goes, batch 1.

    Args:
        backend, threads, runs: how it was run.
        rows: in the order in which an image passes through; at `depth` 0 one row per part.
        whole_ms: from image to result, on a clock of its own round all steps, with the profiler on.
        call_ms: of that, the runtime's call.
        unprofiled_call_ms: the same call without the profiler, as `vitesse predict` makes it.
        parts_found: how nodes were placed → number of nodes.
        matched_ms: how kernels were tied to the graph → milliseconds.
        operators: the same kernels summed by operator.
        notes: what must be known to read the figures.
    """

    backend: str
    threads: int
    runs: int
    depth: int
    rows: tuple[ModuleRow, ...]
    whole_ms: float
    call_ms: float
    unprofiled_call_ms: float
    parts_found: Mapping[str, int]
    matched_ms: Mapping[str, float]
    operators: OperatorProfile
    notes: tuple[str, ...] = ()

    @property
    def sum_ms(self) -> float:
        """Sum of all rows."""
        return sum(row.ms for row in self.rows)

    @property
    def covered(self) -> float:
        """The rows' sum over the whole; far from 1, time is missing or counted twice."""
        return self.sum_ms / self.whole_ms

    @property
    def operators_ms(self) -> float:
        """Time in operators of the graph."""
        return sum(row.ms for row in self.rows if row.kind is Kind.MODEL)

    @property
    def unattributed(self) -> float:
        """Share of the operators' time that could not be tied to a part, 0..1."""
        lost = self.matched_ms.get(Matched.NOT, 0.0)
        return lost / self.operators_ms if self.operators_ms else 0.0

    @property
    def copies_ms(self) -> float:
        """Time in operators that only move numbers, in all parts."""
        return sum(row.copies_ms for row in self.rows)

    def part(self, part: str) -> ModuleRow | None:
        """Return the row of a whole part, summed over its modules; None where the network has none."""
        rows = [row for row in self.rows if row.part == part]
        if not rows:
            return None
        shares = [row.share for row in rows if row.share is not None]
        costs = [row.cost for row in rows if row.cost is not None]
        return ModuleRow(
            rows[0].kind,
            part,
            "",
            sum(row.ms for row in rows),
            sum(shares) if shares else None,
            sum(row.copies_ms for row in rows),
            total(costs) if costs else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rows = [{**asdict(row), "gflops_per_s": row.gflops_per_s} for row in self.rows]
        derived = ("sum_ms", "covered", "operators_ms", "unattributed", "copies_ms")
        operators = self.operators.to_json()
        return {
            **asdict(self),
            "rows": rows,
            "operators": operators,
            **{name: getattr(self, name) for name in derived},
        }


def profile_modules(
    artifact: Artifact,
    images: Sequence[ImageSource],
    *,
    threads: int = 1,
    runs: int = 10,
    depth: int = 0,
    graphs: Sequence[File] = (),
) -> ModuleProfile:
    """Run images through an artifact, one at a time, and say which part of the network took how long.

    Args:
        images: paths, encoded images or pixels; each run takes the next one. See `calls.random_images`.
        threads: CPU threads of the call; 0 leaves the runtime's default.
        runs: recorded runs, after a warm-up.
        depth: 0 = one row per part; n = its modules down to n levels below where the part branches.
        graphs: ONNX files an artifact that is none may have been made from; default: those beside it.

    Raises:
        DataError: no images, or one that cannot be read.
        UsageError: Vitesse cannot read this runtime's times, or the ONNX file behind the artifact is not there.
        BackendError: the runtime refuses to load or run.
    """
    profiled = profiled_calls(artifact, images, threads=threads, runs=runs)
    plain = unprofiled_calls(artifact, images, threads=threads, runs=runs)
    model, modules, notes = _graph_behind(artifact, profiled.kernels, graphs)
    attributed = attribute(profiled.kernels, modules)
    costs = costs_of(model, {name: array.shape for name, array in profiled.feeds.items()})
    rows = _rows(_Table(modules, depth), profiled, [place for place, _ in attributed], costs)
    return ModuleProfile(
        artifact.backend,
        threads,
        runs,
        depth,
        rows,
        profiled.whole_ms,
        profiled.call_ms,
        plain.call_ms,
        {str(way): count for way, count in modules.found().items()},
        {str(way): ms for way, ms in matched_ms(profiled.kernels, attributed).items()},
        summed(artifact.backend, threads, profiled.kernels, [profiled.call_ms] * runs),
        (*notes, *profiled.notes),
    )


def _graph_behind(
    artifact: Artifact, kernels: Sequence[Kernel], graphs: Sequence[File]
) -> tuple[onnx.ModelProto, Modules, tuple[str, ...]]:
    """Return the graph in which the kernels' names are looked up: the artifact, or the ONNX file with most of them."""
    if artifact.path.suffix == ".onnx":
        model = _load(artifact.path)
        return model, modules_of(model), ()
    best: tuple[float, File, onnx.ModelProto, Modules] | None = None
    for path in graphs or sorted(artifact.path.parent.glob("*.onnx")):
        model = _load(path)
        modules = modules_of(model)
        direct = matched_ms(kernels, attribute(kernels, modules))[Matched.DIRECT]
        if best is None or direct > best[0]:
            best = (direct, path, model, modules)
    if best is None:
        raise UsageError(
            f"{artifact.path} does not say which module its kernels came from",
            expected="the ONNX file it was made from, in the same folder",
            fix="profile by operator: vitesse profile RUN --by op",
        )
    _, path, model, modules = best
    return model, modules, (f"operations, weights and parameters are those of {path.name}",)


def _load(path: File) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:
        raise ModelError(f"cannot read {path}: {error}", expected="an ONNX file") from error


class _Table:
    """Which row a place falls into."""

    def __init__(self, modules: Modules, depth: int) -> None:
        self.modules, self.depth = modules, depth
        paths: dict[Part, list[Path]] = defaultdict(list)
        for place in modules.places:
            if place.path:
                paths[place.part].append(place.path)
        self._trunks = {part: _trunk(found) for part, found in paths.items()}
        self.order: dict[tuple[Part, str], int] = {}
        # Casts of weights may stand before everything; where a module begins, its own nodes tell.
        own = [place for place in modules.places if place.found is not Found.NEIGHBOURS]
        for place in (*own, *modules.places):
            self.order.setdefault(self.key(place), len(self.order))

    def key(self, place: Place) -> tuple[Part, str]:
        """Return part and module; no module at depth 0, nor where the path ends before the part branches."""
        trunk = self._trunks.get(place.part, ())
        inside = self.depth > 0 and place.path[: len(trunk)] == trunk and len(place.path) > len(trunk)
        return place.part, ".".join(place.path[: len(trunk) + self.depth]) if inside else ""

    def sorted_keys(self) -> list[tuple[Part, str]]:
        """Return all rows: parts as an image passes through, modules as the graph has them."""
        return sorted(self.order, key=lambda key: (FLOW.index(key[0]), self.order[key]))


def _trunk(paths: Sequence[Path]) -> Path:
    """Return the outer modules that nearly all paths share."""
    trunk: Path = ()
    while True:
        longer = [path[: len(trunk) + 1] for path in paths if path[: len(trunk)] == trunk and path != trunk]
        best, count = Counter(longer).most_common(1)[0] if longer else ((), 0)
        if count < _TRUNK_SHARE * len(paths):
            return trunk
        trunk = best


def _rows(
    table: _Table, calls: Calls, places: Sequence[Place | None], costs: Sequence[Cost]
) -> tuple[ModuleRow, ...]:
    ms: dict[tuple[Part, str] | None, float] = defaultdict(float)
    copies: dict[tuple[Part, str] | None, float] = defaultdict(float)
    for kernel, place in zip(calls.kernels, places, strict=True):
        key = None if place is None else table.key(place)
        ms[key] += kernel.ms
        if family(kernel.operator) in COPIES:
            copies[key] += kernel.ms
    summed: dict[tuple[Part, str], Cost] = defaultdict(Cost)
    for place, cost in zip(table.modules.places, costs, strict=True):
        summed[table.key(place)] += cost
    operators_ms = sum(kernel.ms for kernel in calls.kernels)
    shared = operators_ms + sum(calls.around_ms.values())
    model = [
        ModuleRow(Kind.MODEL, str(key[0]), key[1], ms[key], ms[key] / shared, copies[key], summed[key])
        for key in table.sorted_keys()
    ]
    lost = ModuleRow(Kind.MODEL, str(Matched.NOT), "", ms[None], ms[None] / shared, copies[None])
    around = [
        ModuleRow(Kind.VITESSE, what, "", spent, spent / shared) for what, spent in calls.around_ms.items()
    ]
    outside = ModuleRow(Kind.RUNTIME, "outside operators", "", max(0.0, calls.call_ms - operators_ms), None)
    return (*around[:-1], *model, lost, outside, *around[-1:])
