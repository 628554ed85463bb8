"""Walking the stages: makes each step or takes over the finished one, has it assessed, and remembers what passed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from vitesse.artifact import Artifact
from vitesse.assess import SPEED_FIELDS, Assessor, Step
from vitesse.backends.protocol import Built, LoadOptions
from vitesse.choice import Accepted
from vitesse.data.dataset import Dataset
from vitesse.environment import describe, stable, usable_cores
from vitesse.errors import BackendError, ModelError
from vitesse.ledger import Row, Verdict
from vitesse.measure import Candidate
from vitesse.progress import Progress
from vitesse.recipe import Recipe
from vitesse.run import RunFolder, artifact_of, key_of
from vitesse.stages import CalibrationFeeds
from vitesse.verify.gate import Limits, StepKind

NOTHING_MADE = dict.fromkeys(("artifact", "accuracy", "parity", *SPEED_FIELDS), "the step made no file")


class Course:
    """What the rows of one run have in common.

    Attributes:
        source: the untouched model.
        model, exporting: what it can be exported from again, and how; None where it came as ONNX. Behind a compression
            that passed, the smaller network's.
        accepted: the steps that passed so far.
        machine: what measurements hang on besides the model.
        data_key: a hash of the images to calibrate on.
    """

    def __init__(
        self,
        source: Artifact,
        dataset: Dataset,
        recipe: Recipe,
        folder: RunFolder,
        progress: Progress,
        model: str | Path | None = None,
    ) -> None:
        self.assessor = Assessor(source, dataset, recipe, folder, progress)
        self.accepted: list[Accepted] = []
        self.source, self.dataset, self.recipe, self.model = source, dataset, recipe, model
        self.folder, self.progress = folder, progress
        self.exporting = recipe.source
        self.options = LoadOptions(threads=recipe.measure.threads or usable_cores())
        self.data_key = key_of((dataset.sha256, recipe.data.calib_images))
        self.machine = stable(describe())
        self._rows = 0
        # What a row's figures and verdict hang on; target and latency budget only say which rows are wanted.
        self._context = (
            source.spec.to_json(),
            dataset.sha256,
            len(dataset.val),
            recipe.data.calib_images,
            asdict(recipe.measure),
            asdict(recipe.half),
            asdict(recipe.int8),
            asdict(recipe.search),
            recipe.max_drop,
            source.backend,
            self.machine,
        )

    def step(
        self,
        stage: str,
        kind: StepKind,
        base: Artifact,
        make: Callable[[], Built],
        *,
        options: LoadOptions | None = None,
        reference: Artifact | None = None,
        max_drop: float | None = None,
        decided_by: str = "",
        accept: bool = True,
    ) -> Row:
        """Take over a finished row, or make the artifact and assess it.

        Args:
            base: what it is made from.
            reference, max_drop: see `assess.Step`.
            decided_by: a hash of what else the artifact hangs on.
            accept: whether it may be chosen, and what follows measured against it, where it passes.
        """
        before = max(self.accepted, key=lambda one: one.gain).candidate if self.accepted else None
        chosen = options or self.options
        key = key_of(
            (
                *(stage, base.sha256, None if before is None else before.key, chosen, self._context),
                *(None if reference is None else reference.sha256, max_drop),
                *((decided_by,) if decided_by else ()),
            )
        )
        row = self.folder.finished(key)
        if row is None:
            self.progress.stage(stage, "making the artifact", 1)
            try:
                row = self.assessor.assess(Step(stage, kind, make(), chosen, before, reference, max_drop))
            except (BackendError, ModelError) as error:
                row = Row(stage, Verdict.FAIL, str(error), unmeasured=NOTHING_MADE)
            self.folder.finish(key, row)
        if row.verdict is Verdict.PASS and accept:
            candidate = Candidate(self.artifact(row), chosen)
            self.accepted.append(Accepted(self._rows, stage, candidate, row.gain or 1.0))
        return self._told(row)

    def left_out(self, stage: str, verdict: Verdict, reason: str) -> Row:
        """Return a row for a step that made nothing, with the reason."""
        return self._told(Row(stage, verdict, reason, unmeasured=NOTHING_MADE))

    def artifact(self, row: Row) -> Artifact:
        """Return the artifact of a row, checked."""
        return artifact_of(self.folder.folder, row, self.source.spec)

    def accurate(self, row: Row, max_drop: float | None = None) -> bool:
        """Whether a step keeps the accuracy budget: it passed, or was rejected for its speed alone."""
        drop = None if row.accuracy is None else row.accuracy.drop
        checked = row.verdict in (Verdict.PASS, Verdict.REJECTED)
        limits = Limits(max_drop=self.recipe.max_drop if max_drop is None else max_drop)
        return checked and drop is not None and limits.allow(drop)

    def can_lower(self, precision: str) -> bool:
        """Whether a precision was asked for and there are images to decide on."""
        return precision in self.recipe.precisions and bool(self.dataset.calib.samples)

    def calibration(self, stage: str, artifact: Artifact, images: int | None = None) -> CalibrationFeeds:
        """Return calibration images, prepared for `artifact`, read one at a time; `images`: at most that many."""
        split = self.dataset.calib.spread(min(images or 512, self.recipe.data.calib_images))
        self.progress.stage(stage, "calibrating", len(split))
        return CalibrationFeeds(split, artifact.spec, self.progress.advance)

    def _told(self, row: Row) -> Row:
        self.progress.row(row.stage, row.verdict, row.reason)
        self._rows += 1
        return row
