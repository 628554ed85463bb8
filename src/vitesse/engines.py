"""The engines of a run: which of its graphs becomes which engine, which are there already, and which fits this GPU.

RUN/engines/build-TARGET-HASH.plan      an engine, with its manifest (.json) and layers (.layers.json) beside it
RUN/engines/….plan.build.json           which step of the run it was built from, and what makes it the same build
RUN/engines/timing-TARGET.cache         measured tactics, where the library keeps them

TensorRT for RTX gets one plan for each compute capability, although it takes several at once: a plan for several holds
what all of them can run (with sm75 among them it is sm75's plan to within a few bytes, for sm120 too), and what one of
them refuses fails all. docs/tensorrt.md has the figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vitesse.artifact import Artifact, Store
from vitesse.backends import GPUS, backend, build_for, own_engines
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt.api import Api, load_api, version_of
from vitesse.backends.tensorrt.fitness import current_device, fitness
from vitesse.backends.tensorrt.manifest import (
    BACKENDS,
    PLAN_SUFFIX,
    ManifestError,
    capability_name,
    keep_plan,
    plan_artifact,
    read_manifest,
)
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.backends.tensorrt.profiles import parse_shapes
from vitesse.engine_record import BuildRecord, find_record, keep_record, record_of
from vitesse.errors import BackendError, UsageError, VitesseError
from vitesse.progress import Progress, Silent
from vitesse.run import Run, key_of
from vitesse.selection import Selected, select, select_for

ENGINES = "engines"
BATCH = (1, 1, 8)  # smallest, usual and largest
Newest = Callable[[Path, str], Artifact | None]
_MODULES = {name: module for module, name in BACKENDS.items()}


@dataclass(frozen=True)
class EngineRow:
    """One engine that was asked for.

    Args:
        target: `cuda`, `tensorrt` or `tensorrt-rtx`.
        capability: such as "sm86"; "" = the GPU of the build.
        stage: the step of the run it was built from, and `why` that one; "" for a plain file.
        precision: the types of the network's products; "" where the runtime takes the graph as it is.
        seconds: parsing and building; of an engine that was there already, when it was built.
        artifact: None where there is no engine; `refusal` says why.
        reused: the same engine was there already.
        changes: what was rewritten before the build, name → count.
        notes: why that was rewritten, and what the library warned of.
    """

    target: str
    capability: str
    stage: str = ""
    why: str = ""
    precision: str = ""
    seconds: float = 0.0
    artifact: Artifact | None = None
    reused: bool = False
    changes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def name(self) -> str:
        """As it is typed after --target."""
        return f"{self.target}:{self.capability}" if self.capability else self.target


@dataclass(frozen=True)
class Order:
    """What every engine of one call has in common.

    Args:
        target: the runtime.
        options: `profiles` is set from `shapes` or `batch`, `compute_capabilities` for each engine.
        folder: where engines and their records lie.
        shapes: as `profiles.parse_shapes` reads them; "" = `batch` alone is free.
        batch: smallest, usual and largest.
        rebuild: build also what is there already.
        command: what to type to build again.
    """

    target: str
    options: BuildOptions
    folder: Path
    shapes: str = ""
    batch: tuple[int, int, int] = BATCH
    rebuild: bool = False
    command: str = ""


def build_engines(
    run: Run,
    target: str,
    options: BuildOptions,
    *,
    stage: str = "",
    shapes: str = "",
    batch: tuple[int, int, int] = BATCH,
    rebuild: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> tuple[EngineRow, ...]:
    """Build the graph of a run that suits a target, one engine for each of `options.compute_capabilities`.

    Which graph that is, `selection.select_for` says. An engine that was built before from the same graph, with the same
    options and library, is taken over unless `rebuild`. An engine that fails leaves the others alone.

    Args:
        target: `cuda`, `tensorrt` or `tensorrt-rtx`.
        stage: a step of the run, instead of the one that suits a GPU.
        shapes, batch: the optimisation profiles, see `Order`.

    Raises:
        UsageError: not such a target, unknown stage, shapes that cannot be read, or no GPU to build for was named.
        MissingExtra: the library is not installed.
        RunFolderError: the run is unfinished, or the file was changed since it was verified.
    """
    _check_target(target)
    select(run, target, stage)
    order = Order(target, options, run.folder / ENGINES, shapes, batch, rebuild, command)
    return _built(order, lambda capability: select_for(run, target, stage, capability), progress)


def build_file(artifact: Artifact, order: Order, progress: Progress | None = None) -> tuple[EngineRow, ...]:
    """Build a graph that belongs to no run, as it is; raises as `build_engines`."""
    _check_target(order.target)
    return _built(order, lambda _: artifact, progress)


def engine_for(run: Run, target: str, stage: str = "") -> Artifact:
    """Return the newest engine of a run that runs on this GPU.

    Args:
        target: `tensorrt` or `tensorrt-rtx`.
        stage: only engines built from this step.

    Raises:
        UsageError: another target.
        BackendError: there is none; says which engines there are, why they do not fit, and how to build one.
    """
    newest = own_engines(target)
    if newest is not None:
        return _own_engine(run, target, stage, newest)
    if target not in _MODULES:
        raise UsageError(f"--target {target} has no engines", expected=f"one of: {', '.join(_MODULES)}")
    device, _ = current_device()
    said = []
    for plan in _newest_first(run.folder / ENGINES, target):
        record = record_of(plan)
        if stage and (record is None or record.stage != stage):
            continue
        judged = fitness(plan, device=device)
        if judged.usable:
            return plan_artifact(plan)
        said.append(f"{plan.name}: {'; '.join(judged.reasons)}")
    wanted = f" of the step {stage}" if stage else ""
    suffix = f":{capability_name(device.compute_capability)}" if device and target == "tensorrt-rtx" else ""
    raise BackendError(
        f"{run.folder} has no {target} engine{wanted} that runs here"
        + "".join(f"\n  {line}" for line in said),
        expected="one for this GPU, driver and version of the library",
        cause="" if said else "none was built",
        fix=f"vitesse build {run.folder} --target {target}{suffix}" + (f" --stage {stage}" if stage else ""),
    )


def _own_engine(run: Run, target: str, stage: str, newest: Newest) -> Artifact:
    """The newest engine that the runtime keeps, of one step if it is named; loaded elsewhere it says what differs."""
    wanted = select(run, target, stage).artifact.sha256 if stage else ""
    found = newest(run.folder / ENGINES, wanted)
    if found is not None:
        return found
    raise BackendError(
        f"{run.folder} has no {target} engine{f' of the step {stage}' if stage else ''}",
        cause="none was built",
        fix=f"vitesse build {run.folder} --target {target}" + (f" --stage {stage}" if stage else ""),
    )


def parse_target(text: str) -> tuple[str, tuple[str, ...]]:
    """Read `tensorrt-rtx:sm75,sm86` as a target and the compute capabilities to build for.

    Raises:
        UsageError: what stands behind the colon is no list of compute capabilities.
    """
    target, colon, listed = text.partition(":")
    capabilities = tuple(dict.fromkeys(name.strip().lower() for name in listed.split(",")))
    if not colon:
        return target, ()
    wrong = [name for name in capabilities if not re.fullmatch(r"sm[1-9]\d+", name)]
    if wrong:
        raise UsageError(
            f"--target {text}: {wrong[0]!r} is no compute capability",
            expected="sm and its two or three digits, as in tensorrt-rtx:sm75,sm86",
        )
    return target, capabilities


def _newest_first(folder: Path, target: str) -> list[Path]:
    """The target's plans; one whose manifest cannot be read is left out, as it never runs."""
    found = []
    for plan in folder.glob(f"*{PLAN_SUFFIX}"):
        try:
            manifest = read_manifest(plan)
        except ManifestError:
            continue
        if BACKENDS[manifest.module] == target:
            found.append((manifest.created, plan.stat().st_mtime_ns, plan))
    return [plan for *_, plan in sorted(found, reverse=True)]


def _check_target(target: str) -> None:
    if target not in GPUS:
        raise UsageError(
            f"--target {target} is not built apart",
            expected=f"one of: {', '.join(GPUS)}",
            cause="runtimes for CPUs are built by `vitesse optimize`, which also measures what they gain",
        )


Graph = Selected | Artifact


def _built(order: Order, graph: Callable[[str], Graph], progress: Progress | None) -> tuple[EngineRow, ...]:
    if order.target not in _MODULES:
        return (_for_runtime(order, graph("")),)
    api = load_api(_MODULES[order.target])
    if order.shapes:
        order = replace(order, options=replace(order.options, profiles=parse_shapes(order.shapes)))
    return tuple(
        _row(order, api, capability, graph, progress or Silent()) for capability in _capabilities(order)
    )


def _row(
    order: Order, api: Api, capability: str, graph: Callable[[str], Graph], progress: Progress
) -> EngineRow:
    row = EngineRow(order.target, capability)
    try:
        row, artifact = _begun(row, graph(capability))
        return _plan(order, api, row, artifact, progress)
    except VitesseError as error:
        return replace(row, refusal=str(error))


def _capabilities(order: Order) -> tuple[str, ...]:
    if order.options.compute_capabilities or order.target != "tensorrt-rtx":
        return order.options.compute_capabilities or ("",)
    device, why = current_device()
    if device is None:
        raise UsageError(
            f"--target {order.target} on a machine without a GPU: {why}",
            expected="the compute capabilities to build for",
            fix=f"--target {order.target}:sm86,sm89,sm120",
        )
    return (capability_name(device.compute_capability),)


def _for_runtime(order: Order, graph: Graph) -> EngineRow:
    """Let a runtime that reads ONNX write the graph as it likes it."""
    row, artifact = _begun(EngineRow(order.target, ""), graph)
    try:
        made = (
            _made_as_it_likes(order, artifact)
            if own_engines(order.target) is None
            else _made_for_shapes(order, artifact)
        )
    except VitesseError as error:
        return replace(row, refusal=str(error))
    return replace(row, artifact=made.artifact, changes=made.changes, notes=made.notes)


def _made_as_it_likes(order: Order, artifact: Artifact) -> Built:
    return backend(order.target).build(artifact, Store(order.folder))


def _made_for_shapes(order: Order, artifact: Artifact) -> Built:
    """Plan the smallest, usual and largest shape of every profile, with kernels that are measured on this GPU."""
    profiles = parse_shapes(order.shapes) if order.shapes else ()
    store = Store(order.folder)
    return build_for(
        order.target, artifact, store, profiles=profiles, batch=order.batch, command=order.command
    )


def _plan(order: Order, api: Api, row: EngineRow, artifact: Artifact, progress: Progress) -> EngineRow:
    """Take over a plan, or build it; raises VitesseError where the library refuses."""
    options = replace(
        order.options,
        compute_capabilities=(row.capability,) if row.capability else (),
        timing_cache=order.folder / f"timing-{order.target}.cache",
    )
    key = _key(order, api, options, artifact)
    known = None if order.rebuild else find_record(order.folder, key)
    if known is not None:
        plan, record = known
        manifest = read_manifest(plan)
        row = replace(row, precision=manifest.precision, seconds=manifest.seconds, reused=True)
        return replace(row, artifact=plan_artifact(plan), changes=record.changes, notes=record.notes)
    # Imported here because a machine that only runs engines lacks the packages that rewriting needs.
    from vitesse.backends.tensorrt.building import build_artifact

    store = Store(order.folder)
    made = build_artifact(
        api,
        artifact,
        options,
        store=store,
        name=order.target,
        distrusts=backend(order.target).distrusts,
        batch=order.batch,
        progress=progress,
    )
    kept = keep_plan(
        made.plan,
        made.graph.artifact,
        made.options,
        module=_MODULES[order.target],
        store=store,
        command=order.command,
        device=current_device()[0],
    )
    row = replace(row, changes=made.graph.changes, notes=(*made.graph.notes, *made.plan.log))
    keep_record(kept.path, BuildRecord(key, row.stage, row.why, row.changes, row.notes))
    return replace(row, precision=made.plan.precision, seconds=made.plan.seconds, artifact=kept)


def _begun(row: EngineRow, graph: Graph) -> tuple[EngineRow, Artifact]:
    """The row with the step it is built from, and the graph of that."""
    if isinstance(graph, Selected):
        return replace(row, stage=graph.row.stage, why=graph.why), graph.artifact
    return row, graph


def _key(order: Order, api: Api, options: BuildOptions, artifact: Artifact) -> str:
    """Everything that the bytes of a plan depend on, with the GPU where that decides."""
    chosen = asdict(replace(options, timing_cache=None))
    gpu = None if order.options.compute_capabilities else current_device()[0]
    return key_of([order.target, version_of(api), artifact.sha256, chosen, order.batch, gpu])
