"""Rows of the ledger for `--compress`: the network pruned, and then taught by the original.

    checkpoint ──cut──▶ compress/KEY/pruned ──distil──▶ compress/KEY/distilled ──▶ the rest of the run, or not
                             │ export                        │ export
                             ▼                               ▼
                         row prune:0.7 (shown)           row distil:0.7 (decides)

The pruned network is measured as it is, untrained, so that the ledger shows what the training brought back. What comes
behind goes on from the distilled one where it keeps the budget and is faster, else from the original.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from vitesse import stages
from vitesse.artifact import Artifact, Provenance
from vitesse.backends.protocol import Built
from vitesse.compress.distillation.job import distil_from
from vitesse.compress.distillation.options import DistilOptions
from vitesse.compress.pruning.job import Job, cut
from vitesse.compress.scoring import Scorer, scorer
from vitesse.course import Course
from vitesse.data.dataset import open_dataset
from vitesse.data.split import Split, fingerprint
from vitesse.errors import DataError, UsageError
from vitesse.export.exporting import export_source
from vitesse.intake import Model
from vitesse.ledger import Row, Verdict
from vitesse.recipe import EIGHT_BITS, CompressOptions, Recipe, SourceOptions
from vitesse.run import key_of
from vitesse.sources.opening import is_onnx, is_saved, open_source
from vitesse.sources.source import Given
from vitesse.sources.spec_file import given_from
from vitesse.sources.trainable import open_trainable, save_trainable
from vitesse.training.data.reading import read_training
from vitesse.training.loop import LOG, Trained
from vitesse.training.options import TrainOptions
from vitesse.verify.gate import StepKind

# Widths for kernels: 8-bit matrix units take sixteen numbers at a time, the others eight.
_MULTIPLE, _MULTIPLE_OF_EIGHT_BITS = 8, 16


def check_compression(model: Model, recipe: Recipe) -> None:
    """Refuse at once what could only fail after the original was exported and measured.

    Raises:
        UsageError: a model whose weights cannot be trained, no training images named, or open height and width.
        ModelError, SpecError: see `open_trainable`.
        DataError: see `read_training`.
    """
    options = recipe.compress
    if not isinstance(model, str | Path) or is_onnx(model):
        raise UsageError(
            f"--compress {options.share:g} of {model if isinstance(model, str | Path) else 'a model that is open'}",
            expected="a checkpoint: .pth or .safetensors of a DETR, .npz of a ViT, or a folder of prune or distill",
            cause="an exported graph has no gradients, so it cannot be pruned and trained",
            fix="give the checkpoint that it was exported from",
        )
    if {"height", "width"} & set(recipe.source.dynamic):
        raise UsageError(
            f"--compress with --dynamic {','.join(recipe.source.dynamic)}",
            expected="one image size: a network is trained at one",
            fix="leave height and width out of --dynamic",
        )
    trainable = open_trainable(model, given_from(recipe.spec, recipe.source.settings))
    read_training(_images(options), trainable.spec, options.labels)


def compressed_rows(course: Course) -> Generator[Row, None, Artifact | None]:
    """Prune, measure; distil, measure; return the smaller network's graph, or None where the original stays.

    Where it is returned, the course has the smaller checkpoint as its model, for levers that export again.

    Raises:
        UsageError: the share cannot be reached; see `prune`.
        DataError: images are trained on and verified on.
    """
    compression = _Compression(course)
    row = compression.prune_row()
    yield row
    if row.verdict is Verdict.FAIL:
        return None
    row = compression.distil_row()
    yield row
    if row.verdict is not Verdict.PASS:
        return None
    course.model = compression.distilled if is_saved(compression.distilled) else None
    course.exporting = _without_settings(course.exporting)
    return course.artifact(row)


class _Compression:
    """One original and its two smaller networks, in a folder that what decides them names."""

    def __init__(self, course: Course) -> None:
        assert course.model is not None, "check_compression was called"
        self._course, self._options = course, course.recipe.compress
        self._teacher = open_trainable(course.model, Given(course.source.spec, course.recipe.source.settings))
        images = _images(self._options)
        split, _ = read_training(images, self._teacher.spec, self._options.labels)
        _refuse_overlap(split, course.dataset.val, images)
        self._judging = self._judging_images()
        eight_bits = any(name.startswith(EIGHT_BITS) for name in course.recipe.precisions)
        self._multiple = self._options.multiple or (_MULTIPLE_OF_EIGHT_BITS if eight_bits else _MULTIPLE)
        judged = fingerprint(course.dataset.folder, (self._judging,))
        self._key = key_of(
            (
                course.source.sha256,
                asdict(self._options),
                self._multiple,
                fingerprint(images, (split,)),
                judged,
            )
        )
        folder = course.folder.folder / "compress" / self._key[:12]
        self._pruned, self.distilled = folder / "pruned", folder / "distilled"

    def prune_row(self) -> Row:
        """The pruned network, untrained: shown, and never chosen."""
        stage = f"prune:{self._options.share:g}"
        make = partial(self._make_pruned, stage)
        return self._course.step(
            stage, StepKind.LEVER, self._course.source, make, decided_by=self._key, accept=False
        )

    def distil_row(self) -> Row:
        """The pruned network after it learnt from the original."""
        stage = f"distil:{self._options.share:g}"
        make = partial(self._make_distilled, stage)
        return self._course.step(stage, StepKind.LEVER, self._course.source, make, decided_by=self._key)

    def _make_pruned(self, stage: str) -> Built:
        pruned = cut(self._job(), self._teacher)
        save_trainable(pruned.trainable, self._pruned)
        notes = (
            "untrained: what it lost, the next step brings back, and that one decides",
            f"{pruned.share:.1%} of the operations of convolutions and matrix products are left, "
            f"{pruned.parameters[1] / pruned.parameters[0]:.1%} of the parameters",
        )
        narrower = sum(left < whole for left, whole in pruned.kept.values())
        return Built(self._exported(self._pruned, stage), {"groups made narrower": narrower}, notes)

    def _make_distilled(self, stage: str) -> Built:
        if not is_saved(self._pruned):  # its row was taken over, its folder deleted
            save_trainable(cut(self._job(), self._teacher).trainable, self._pruned)
        student = open_trainable(self._pruned)
        score = scorer(self._teacher, self._judging) if len(self._judging) else None
        trained, said = distil_from(
            _images(self._options),
            self._teacher,
            student,
            self._learning(),
            self.distilled,
            score=score,
            progress=self._course.progress,
        )
        log = (self.distilled / LOG).relative_to(self._course.folder.folder).as_posix()
        notes = (*_story(trained, score, log), *said)
        return Built(self._exported(self.distilled, stage, log), notes=notes)

    def _exported(self, folder: Path, stage: str, log: str = "") -> Artifact:
        course = self._course
        options = stages.export_options(course.recipe.source)
        exported = export_source(open_source(folder), options, course.progress)
        provenance = Provenance(stage, course.source.sha256, {"training log": log} if log else {})
        return course.folder.store.put(exported.content, exported.spec, provenance, suffix=".onnx")

    def _job(self) -> Job:
        options = self._options
        return Job(
            str(self._course.model),
            options.share,
            _images(options),
            method=options.method,
            images=options.images,
            multiple=self._multiple,
            decoder_layers=options.decoder_layers or None,
            labels=options.labels,
        )

    def _learning(self) -> DistilOptions:
        options = self._options
        length = {"steps": options.steps} if options.steps else {"seconds": options.seconds}
        train = TrainOptions(batch=options.batch, rate=options.rate, **length)
        return DistilOptions(train, labels=options.labels, augmentation=options.augmentation)

    def _judging_images(self) -> Split:
        """Images that the best weights are picked on: never those that the verdict is given on."""
        if self._options.train_val is None:
            return self._course.dataset.calib
        return open_dataset(Path(self._options.train_val), spec=self._teacher.spec, holdout=0).val


def _images(options: CompressOptions) -> Path:
    if options.train_data is None:
        raise UsageError(
            f"--compress {options.share:g} without training images",
            expected="--train-data FOLDER: a network that is cut has to learn again",
            fix="name a folder of COCO, class folders, or with compress.labels = false bare images",
        )
    return Path(options.train_data)


def _refuse_overlap(training: Split, verified: Split, folder: Path) -> None:
    judged = {sample.path.resolve() for sample in verified.samples}
    both = [sample.path for sample in training.samples if sample.path.resolve() in judged]
    if both:
        raise DataError(
            f"{len(both)} images of {folder} are trained on and verified on, such as {both[0].name}",
            expected="other images in --train-data than in --data",
            cause="one folder for both; a network trained on what verifies it proves nothing",
            fix="name training images, or lay them apart as train/ and val/",
        )


def _story(trained: Trained, score: Scorer | None, log: str) -> tuple[str, ...]:
    """Return what the ledger says about a training, with its curve in words."""
    said = [f"{trained.steps} steps in {trained.seconds:.0f} s; every step: {log}"]
    curve = [(row["step"], row["score"]) for row in trained.history if "score" in row]
    if score is not None and curve:
        points = ", ".join(f"{step:.0f}: {value:.2f}" for step, value in curve)
        said.append(f"score by step, in points on {len(score.split)} images: {points}")
    if trained.stopped:
        said.append(f"stopped early: {trained.stopped}; the last good weights are kept")
    return tuple(said)


def _without_settings(source: SourceOptions) -> SourceOptions:
    """What belongs to the original checkpoint alone: a saved folder says everything itself."""
    return replace(source, settings={}, weights=None)
