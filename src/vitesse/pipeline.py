"""The order of the stages, and the choice at the end.

    source → clean → fuse (→ lower) → int8 … → build:RUNTIME …  →  the fastest artifact that passed

Every step is assessed by itself. A step that is REJECTED or UNKNOWN is left out, and the next goes on from the
artifact before it. A structural step that FAILs stops the run: the graph cannot be trusted to be rewritten. A precision
step or a build that FAILs ends that branch only.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.assess import Assessor, Step
from vitesse.backends import backend, quantizer, targets
from vitesse.backends.protocol import Built, LoadOptions
from vitesse.choice import Accepted, choose
from vitesse.data.dataset import Dataset
from vitesse.environment import describe, stable, usable_cores
from vitesse.errors import BackendError, MissingExtra, ModelError, UsageError
from vitesse.intake import Model, name_of, story_of, take_in
from vitesse.ledger import Ledger, Row, Verdict
from vitesse.measure import Candidate
from vitesse.precision.calibration import calibrate
from vitesse.precision.int8 import OP_TYPES, Scheme, applicable_schemes, quantize
from vitesse.progress import Progress, Silent
from vitesse.recipe import Recipe, merge
from vitesse.report.gather import write_run_report
from vitesse.run import Run, RunFolder, artifact_of, key_of
from vitesse.sources.onnx_file import load_onnx
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
        target: `cpu`, `onnxruntime` or `openvino`.
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
    progress = progress or Silent()
    # Without a step to calibrate, no image has to be held out from verifying.
    begun = take_in(
        source, recipe, Path(data), Path(out), progress, HOLDOUT if "int8" in recipe.precisions else 0.0
    )
    folder, artifact, dataset = begun.folder, begun.artifact, begun.dataset
    if recipe.data.limit:
        dataset = replace(dataset, val=dataset.val.spread(recipe.data.limit))
    course = Course(artifact, dataset, recipe, folder, progress)
    ledger = Ledger(
        source=name_of(source),
        target=recipe.target,
        environment=describe(),
        command=shlex.join(command),
        max_drop=recipe.max_drop,
    )
    for row in course.rows(runtimes):
        ledger = ledger.with_row(row)
        ledger.save(folder.folder / "ledger.json")
    trusted = {"source", *structural_stages(recipe)}
    if all(row.verdict is not Verdict.FAIL for row in ledger.rows if row.stage in trusted):
        ledger = choose(ledger, course.accepted, course.assessor)
        ledger.save(folder.folder / "ledger.json")
    write_run_report(folder.folder, ledger, course.accepted, course.assessor)
    return Run(folder.folder, ledger)


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


class Course:
    """Walks the stages in order, takes over finished steps, and remembers what passed."""

    def __init__(
        self, source: Artifact, dataset: Dataset, recipe: Recipe, folder: RunFolder, progress: Progress
    ) -> None:
        self.assessor = Assessor(source, dataset, recipe, folder, progress)
        self.accepted: list[Accepted] = []
        self._source, self._dataset, self._recipe = source, dataset, recipe
        self._folder, self._progress = folder, progress
        self._rows = 0
        self._options = LoadOptions(threads=recipe.measure.threads or usable_cores())
        # What a row's figures and verdict hang on; target and latency budget only say which rows are wanted.
        self._context = (
            source.spec.to_json(),
            dataset.sha256,
            len(dataset.val),
            recipe.data.calib_images,
            asdict(recipe.measure),
            asdict(recipe.int8),
            recipe.max_drop,
            stable(describe()),
        )

    def rows(self, runtimes: Sequence[str]) -> Iterator[Row]:
        """Yield one finished row after the other."""
        row = self._step(
            "source",
            StepKind.SOURCE,
            self._source,
            lambda: Built(self._source, notes=(*story_of(self._source), *self._dataset.notes)),
            LoadOptions(plain=True),
        )
        yield row
        if row.verdict is not Verdict.PASS:
            return
        graph = self._source
        for stage, (kind, make) in structural_stages(self._recipe).items():
            row = self._step(stage, kind, graph, partial(make, graph, self._folder.store))
            yield row
            if row.verdict is Verdict.FAIL:
                return
            graph = self._artifact(row) if row.verdict is Verdict.PASS else graph
        quantised: Artifact | None = None
        if "int8" in self._recipe.precisions:
            for row in self._quantised(graph) if self._dataset.calib.samples else self._uncalibrated():
                yield row
                quantised = self._artifact(row) if self._accurate(row) else None
        for runtime in runtimes:
            yield from self._builds(runtime, graph, quantised)
            if "int8" in self._recipe.precisions and self._dataset.calib.samples:
                yield from self._own_int8(runtime, graph)

    def _builds(self, runtime: str, graph: Artifact, quantised: Artifact | None) -> Iterator[Row]:
        """Build both precisions. Runtimes round INT8 each in their way, so accuracy judges it, not equal numbers."""
        for base, suffix, kind in ((graph, "", StepKind.BUILD), (quantised, ":int8", StepKind.PRECISION)):
            if base is not None:
                make = partial(backend(runtime).build, base, self._folder.store)
                yield self._step(f"build:{runtime}{suffix}", kind, base, make)

    def _quantised(self, graph: Artifact) -> Iterator[Row]:
        """Try one scheme after the other, most layers first, until one is accurate enough; calibrate once for all.

        Whether it is fast enough is another question for each runtime.
        """

        @cache
        def ranges() -> Any:
            return calibrate(graph, self._calibration("int8"), OP_TYPES, self._recipe.int8)

        def make(scheme: Scheme) -> Built:
            return quantize(graph, self._folder.store, scheme, ranges(), self._recipe.int8)

        for scheme in applicable_schemes(load_onnx(graph.path)):
            row = self._step(scheme.name, StepKind.PRECISION, graph, partial(make, scheme))
            yield row
            if self._accurate(row):
                return

    def _uncalibrated(self) -> Iterator[Row]:
        reason = "there is no image to calibrate on: name some with --calib-data"
        row = Row("int8", Verdict.UNKNOWN, reason, unmeasured={"artifact": "the step made none"})
        self._progress.row(row.stage, row.verdict, row.reason)
        self._rows += 1
        yield row

    def _own_int8(self, runtime: str, graph: Artifact) -> Iterator[Row]:
        """Try the runtime's own quantiser, where it has one and that is installed."""
        try:
            own = quantizer(runtime)
        except (UsageError, MissingExtra):
            return
        yield self._step(
            f"int8:{runtime}",
            StepKind.PRECISION,
            graph,
            lambda: own(graph, self._folder.store, self._calibration(f"int8:{runtime}")),
        )

    def _calibration(self, stage: str) -> stages.CalibrationFeeds:
        split = self._dataset.calib.spread(self._recipe.data.calib_images)
        self._progress.stage(stage, "calibrating", len(split))
        return stages.CalibrationFeeds(split, self._source.spec, self._progress.advance)

    def _step(
        self,
        stage: str,
        kind: StepKind,
        base: Artifact,
        make: Callable[[], Built],
        options: LoadOptions | None = None,
    ) -> Row:
        """Take over a finished row, or make the artifact and assess it."""
        before = max(self.accepted, key=lambda one: one.gain).candidate if self.accepted else None
        chosen = options or self._options
        key = key_of((stage, base.sha256, None if before is None else before.key, chosen, self._context))
        row = self._folder.finished(key)
        if row is None:
            self._progress.stage(stage, "making the artifact", 1)
            try:
                step = Step(stage, kind, make(), chosen, before)
                row = self.assessor.assess(step)
            except (BackendError, ModelError) as error:
                row = Row(stage, Verdict.FAIL, str(error), unmeasured={"artifact": "the step made none"})
            self._folder.finish(key, row)
        self._progress.row(stage, row.verdict, row.reason)
        if row.verdict is Verdict.PASS:
            candidate = Candidate(self._artifact(row), chosen)
            self.accepted.append(Accepted(self._rows, stage, candidate, row.gain or 1.0))
        self._rows += 1
        return row

    def _accurate(self, row: Row) -> bool:
        """Whether a step keeps the accuracy budget: it passed, or was rejected for its speed alone."""
        drop = None if row.accuracy is None else row.accuracy.drop
        checked = row.verdict in (Verdict.PASS, Verdict.REJECTED)
        return checked and drop is not None and drop <= self._recipe.max_drop

    def _artifact(self, row: Row) -> Artifact:
        return artifact_of(self._folder.folder, row, self._source.spec)
