"""The order of the stages, and the choice at the end.

    source (→ prune → distil) → clean → fuse (→ lower → size, decoder, queries, tokens)
      ┬ fp16, bf16, int8, fp8        for every runtime
      ├ build:RUNTIME, int8:RUNTIME  for one of a CPU
      └ build:RUNTIME, fp16:RUNTIME… for one of a GPU
    →  the fastest artifact that passed

Every step is assessed by itself. A step that is REJECTED or UNKNOWN is left out, and the next goes on from the
artifact before it. A structural step that FAILs stops the run: the graph cannot be trusted to be rewritten. A precision
step or a build that FAILs ends that branch only.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import GPUS, backend, home_of, require, targets
from vitesse.backends.protocol import Built, LoadOptions
from vitesse.choice import choose
from vitesse.compress.rows import lever_rows
from vitesse.course import Course
from vitesse.environment import describe
from vitesse.intake import Model, name_of, story_of, take_in
from vitesse.ledger import Ledger, Row, Verdict
from vitesse.precision.rows import eight_bit_rows, half_rows, own_int8_rows
from vitesse.precision.search.rows import searched_rows
from vitesse.progress import Progress, Silent
from vitesse.recipe import CPU_PRECISIONS, GPU_PRECISIONS, LOWERED, Recipe, merge
from vitesse.report.gather import write_run_report
from vitesse.resolution import resolution_rows
from vitesse.run import Run
from vitesse.serve.releases.golden import COUNT, golden_of
from vitesse.sources.opening import is_onnx
from vitesse.verify.gate import StepKind

StructuralStage = tuple[StepKind, Callable[[Artifact, Store], Built]]
HOLDOUT = 0.1
STRUCTURAL_STAGES: Mapping[str, StructuralStage] = {
    "clean": (StepKind.CLEANING, stages.clean),
    "fuse": (StepKind.STRUCTURAL, stages.fuse),
}


def optimize(
    source: Model,
    *,
    data: str | Path,
    out: str | Path = "run",
    target: str | None = None,
    max_drop: float | None = None,
    latency_budget_ms: float | None = None,
    recipe: Recipe | None = None,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Run:
    """Make a model faster and prove that it is still right.

    Args:
        source: an ONNX file, a checkpoint, a name (see `sources.opening`), a source such as `from_jax` gives, or an
            artifact from `open_model`.
        data: a folder of images: COCO, class folders or bare images.
        out: the run folder; a finished step in it is taken over, so that an interrupted run goes on.
        target: `cpu`, or a runtime, see `backends.TARGETS`.
        max_drop: accuracy budget in points of AP or top-1 (0.5 = half a point).
        latency_budget_ms: the latency needed at batch 1; the run says whether it is met.
        recipe: these and all other options; the arguments above win.
        command: what the user typed, for the report.

    Returns:
        The run, with its ledger and the chosen artifact.

    Raises:
        ModelError, SpecError, DataError, RunFolderError, UsageError, MissingExtra, StorageError: each says what came,
        what was expected and what to do.
    """
    given = {"target": target, "max_drop": max_drop, "latency_budget_ms": latency_budget_ms}
    recipe = merge(recipe or Recipe(), {name: value for name, value in given.items() if value is not None})
    runtimes = targets(recipe.target)
    if recipe.target in GPUS:
        for needed in dict.fromkeys((*runtimes, home_of(recipe.target))):
            require(needed)
    if not recipe.precisions:
        recipe = replace(recipe, precisions=GPU_PRECISIONS if recipe.target in GPUS else CPU_PRECISIONS)
    progress = progress or Silent()
    # Without a step that looks at activations, no image has to be held out from verifying.
    looks = bool(LOWERED & set(recipe.precisions)) or bool(recipe.levers) or recipe.compress.asked
    if recipe.compress.asked:
        _trained_rows().check_compression(source, recipe)
    begun = take_in(source, recipe, Path(data), Path(out), progress, HOLDOUT if looks else 0.0)
    folder, dataset = begun.folder, begun.dataset
    if recipe.data.limit:
        dataset = replace(dataset, val=dataset.val.spread(recipe.data.limit))
    again = source if isinstance(source, str | Path) and not is_onnx(source) else None
    course = Course(begun.artifact, dataset, recipe, folder, progress, again)
    ledger = Ledger(
        source=name_of(source),
        target=recipe.target,
        environment=describe(),
        command=shlex.join(command),
        max_drop=recipe.max_drop,
    )
    for row in rows(course, runtimes):
        ledger = ledger.with_row(row)
        ledger.save(folder.folder / "ledger.json")
    trusted = {"source", *structural_stages(recipe)}
    if all(row.verdict is not Verdict.FAIL for row in ledger.rows if row.stage in trusted):
        ledger = choose(ledger, course.accepted, course.assessor)
        ledger.save(folder.folder / "ledger.json")
    write_run_report(folder.folder, ledger, course.accepted, course.assessor)
    run = Run(folder.folder, ledger)
    if run.verified:
        # Kept by the machine that made the run, so that another one that serves it is held against this one's answers.
        golden_of(run, [pixels for _, pixels in dataset.val.spread(COUNT)])
    return run


def structural_stages(recipe: Recipe) -> Mapping[str, StructuralStage]:
    """The stages that keep the numbers, in order.

    Lowering is asked for by the user for a target that lacks an operator or gets it wrong: it is judged by its numbers
    alone, as cleaning is.
    """
    if not recipe.lower:
        return STRUCTURAL_STAGES

    def lower(artifact: Artifact, store: Store) -> Built:
        return stages.lower(artifact, recipe.lower, store)

    return {**STRUCTURAL_STAGES, f"lower:{'+'.join(recipe.lower)}": (StepKind.CLEANING, lower)}


def rows(course: Course, runtimes: Sequence[str]) -> Iterator[Row]:
    """Yield one finished row after the other, in the order of the stages."""
    source = course.source
    row = course.step(
        "source",
        StepKind.SOURCE,
        source,
        lambda: Built(source, notes=(*story_of(source), *course.dataset.notes)),
        options=LoadOptions(plain=True),
    )
    yield row
    if row.verdict is not Verdict.PASS:
        return
    graph, compressed = source, None
    if course.recipe.compress.asked:
        compressed = yield from _trained_rows().compressed_rows(course)
        graph = compressed or source
    for stage, (kind, make) in structural_stages(course.recipe).items():
        make_stage = partial(make, graph, course.folder.store)
        row = course.step(stage, kind, graph, make_stage, reference=compressed)
        yield row
        if row.verdict is Verdict.FAIL:
            return
        graph = course.artifact(row) if row.verdict is Verdict.PASS else graph
    if course.recipe.buckets:
        yield from resolution_rows(course, graph, course.recipe.buckets)
    smaller = yield from lever_rows(course, graph)
    # Behind a lever or a compression the outputs are other ones; what follows has to reproduce the smaller network's.
    reference = (compressed or source) if smaller == graph else smaller
    portable: dict[str, Artifact] = {}
    for row in chain(half_rows(course, smaller, reference), eight_bit_rows(course, smaller, reference)):
        yield row
        if course.accurate(row):
            portable[row.stage] = course.artifact(row)
    for runtime in runtimes:
        make = partial(backend(runtime).build, smaller, course.folder.store)
        yield course.step(f"build:{runtime}", StepKind.BUILD, smaller, make, reference=reference)
        if runtime in GPUS:
            yield from _engine_rows(course, runtime, portable)
        elif course.can_lower("int8"):
            yield from searched_rows(course, smaller, runtime, reference)
            yield from own_int8_rows(course, runtime, smaller, reference)


def _trained_rows() -> ModuleType:
    """What `--compress` needs, torch among it, is loaded where it is asked for."""
    return import_module("vitesse.compress.trained_rows")


def _engine_rows(course: Course, runtime: str, portable: Mapping[str, Artifact]) -> Iterator[Row]:
    """Build every lower precision that kept its accuracy; an engine has to reproduce the file that it is made from."""
    for stage, graph in portable.items():
        make = partial(backend(runtime).build, graph, course.folder.store)
        yield course.step(f"{stage}:{runtime}", StepKind.BUILD, graph, make, reference=graph)
