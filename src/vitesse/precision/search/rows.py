"""Rows of the ledger for INT8 as one runtime runs it fastest: the set of blocks that a search finds, then the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import Built
from vitesse.course import Course
from vitesse.errors import BackendError, ModelError, NotVerified
from vitesse.ledger import Row, Verdict
from vitesse.precision.calibrated import Calibrated, calibrate_graph
from vitesse.precision.quantize import quantize
from vitesse.precision.search.found import Blocks, Found
from vitesse.precision.search.plan import Plan
from vitesse.precision.search.quantised import QuantisedSubject
from vitesse.precision.search.reference import Reference
from vitesse.precision.search.searching import search
from vitesse.precision.search.trials import TrialStore
from vitesse.recipe import METHODS, Int8Options
from vitesse.verify.gate import StepKind

# The gate sees images that the search did not; it may refuse what those few let pass, and a more careful set follows.
ATTEMPTS = 3
ALPHA = 0.5
# What activations may become, the faster first (docs/quantisation.md); other runtimes take zero point 0 only.
NUMBERS: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("uint8", "int8"), "openvino": ("int8", "uint8")}
PORTABLE = ("int8",)


def searched_rows(course: Course, graph: Artifact, runtime: str, reference: Artifact) -> Iterator[Row]:
    """Search the fastest set of blocks inside the budget for a runtime, and assess it on all validation images."""
    refused: list[Blocks] = []
    for attempt in range(ATTEMPTS):
        stage = f"int8:{runtime}" + (f":{attempt + 1}" if attempt else "")
        with TemporaryDirectory(prefix="vitesse-") as scratch:
            ways = _Ways(course, graph, runtime, stage, Path(scratch))
            try:
                found = ways.search(refused)
            except (BackendError, ModelError, NotVerified) as error:
                yield course.left_out(stage, Verdict.UNKNOWN, str(error))
                return
            if not found.chosen:
                yield course.left_out(stage, Verdict.REJECTED, found.reason.removeprefix("rejected: "))
                return
            make = partial(ways.make, found)
            row = course.step(stage, StepKind.PRECISION, graph, make, reference=reference)
        yield row
        if row.accuracy is None or course.accurate(row):
            return
        refused.append(found.chosen)


class _Ways:
    """The ways of quantising one graph for one runtime: by number, by method, with outliers smoothed or not."""

    def __init__(self, course: Course, graph: Artifact, runtime: str, stage: str, scratch: Path) -> None:
        self.course, self.graph, self.runtime, self.stage, self.scratch = (
            course,
            graph,
            runtime,
            stage,
            scratch,
        )
        self.split = course.dataset.calib.spread(course.recipe.search.images)
        self.trials = TrialStore(course.folder.folder / "trials")
        self._reference: Reference | None = None

    def search(self, refused: list[Blocks]) -> Found:
        """Search, or take over what the same search found before."""
        recipe = self.course.recipe
        key = (
            *("found", self.graph.sha256, self.runtime, self.course.data_key, recipe.max_drop),
            *(asdict(recipe.int8), asdict(recipe.search), asdict(recipe.measure)),
            *(self.course.options, self.course.machine, [sorted(blocks) for blocks in refused]),
        )
        kept = self.trials.finished(*key)
        if kept is not None:
            return Found.from_json(kept)
        options = self.options()
        first = next(iter(options))
        found = search(
            self.subject(options[first]),
            max_drop=recipe.max_drop,
            options=recipe.search,
            trials=self.trials,
            on_trial=lambda trial: self.course.progress.advance(),
            on_plan=self._tell,
            variants={name: partial(self.subject, one) for name, one in options.items() if name != first},
            refused=tuple(refused),
        )
        found = replace(found, variant=found.variant or first)
        self.trials.finish(found.to_json(), *key)
        found.save(self.course.folder.folder)
        return found

    def make(self, found: Found) -> Built:
        """Quantise the blocks that were found and build for the runtime."""
        store, options = self.course.folder.store, self.options()[found.variant]
        calibrated = self.calibrated(options)
        names = [layer.name for layer in calibrated.layers if layer.block in found.chosen]
        quantised = quantize(
            calibrated.artifact, store, names, calibrated.ranges, options, stage=f"int8:{self.runtime}"
        )
        built = backend(self.runtime).build(quantised.artifact, store)
        kept = [one.block for one in found.sensitivities if not one.lowered]
        notes = (
            f"searched in {found.seconds:.0f} s, {len(found.trials)} trials on {found.images} calibration images: "
            f"{found.reason} ({found.variant})",
            f"in FP32: {', '.join(kept) or 'no block'}",
            *found.notes,
        )
        changes = {**quantised.changes, **built.changes}
        return replace(
            built, changes=changes, notes=(*notes, *calibrated.notes, *quantised.notes, *built.notes)
        )

    def options(self) -> Mapping[str, Int8Options]:
        """Return name → options, what was asked for first; what was left to the search is varied."""
        given = self.course.recipe.int8
        numbers = NUMBERS.get(self.runtime, PORTABLE) if given.activations == "auto" else (given.activations,)
        found = {}
        for number in numbers:
            for method in dict.fromkeys((given.method, *METHODS)):
                found[f"{number}, {method}"] = replace(given, activations=number, method=method)
        smoothed = replace(given, activations=numbers[0], smooth=given.smooth or ALPHA)
        return {**found, f"{numbers[0]}, {given.method}, smoothed": smoothed}

    def subject(self, options: Int8Options) -> QuantisedSubject:
        """Return one way of quantising as a subject of the search."""
        return QuantisedSubject(self.reference, self.calibrated(options), options, scratch=self.scratch)

    def calibrated(self, options: Int8Options) -> Calibrated:
        """Calibrate on all calibration images, once for all ways that see the same graph."""
        return calibrate_graph(
            self.graph,
            self.course.folder.store,
            self.course.calibration(self.stage, self.graph),
            options,
            symmetric=options.activations == "int8",
            cache=self.course.folder.calibration,
            data_key=self.course.data_key,
        )

    @property
    def reference(self) -> Reference:
        """The original on the search images, run once."""
        if self._reference is None:
            self.course.progress.stage(self.stage, "running the original on the search images", 1)
            self._reference = Reference(
                self.graph,
                self.split,
                self.runtime,
                load=self.course.options,
                measure=self.course.recipe.measure,
                scratch=self.scratch,
            )
        return self._reference

    def _tell(self, plan: Plan) -> None:
        self.course.progress.stage(self.stage, f"searching, {plan.words()}", plan.sets + plan.probes)
