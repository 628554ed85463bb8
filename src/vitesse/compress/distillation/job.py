"""The whole of `vitesse distill`: open, score, train, save, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vitesse.compress.distillation.distil import distil
from vitesse.compress.distillation.options import DistilOptions
from vitesse.compress.distillation.student import open_student
from vitesse.compress.pruning.flops import flops, parameters
from vitesse.compress.scoring import Scorer, check_knows, points, scorer
from vitesse.data.dataset import open_dataset
from vitesse.progress import Progress
from vitesse.sources.source import Given
from vitesse.sources.trainable import Trainable, open_trainable, save_trainable
from vitesse.training.data.augment import augmentation
from vitesse.training.data.opening import open_training
from vitesse.training.devices import device_before
from vitesse.training.loop import Trained


@dataclass(frozen=True)
class Line:
    """One network of the comparison; `score` in points, None without validation images."""

    name: str
    score: float | None
    flops: int
    parameters: int


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Args:
        metric: "coco_ap", "top1", "agreement" (with the teacher), or "" where nothing was scored.
        lines: teacher, student before, student after.
        notes: on the data.
    """

    student: Trainable
    trained: Trained
    metric: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """Who learns what from whom.

    Args:
        teacher: a path, as `open_trainable` takes it.
        student: as `open_student` takes it.
        data: the training images.
        val: images to score on; without, the averaged weights of the end are kept.
        given: the spec and settings of the teacher.
        taught: False: the teacher gives the student sizes and first weights alone, and it learns from labels.
    """

    teacher: str
    student: str
    data: Path
    val: Path | None = None
    given: Given | None = None
    taught: bool = True


def distil_to(out: Path, job: Job, options: DistilOptions, *, progress: Progress | None = None) -> Distilled:
    """Distil into a folder: model.safetensors, config.json, training.csv and checkpoints.

    The folder of an interrupted run is gone on from.

    Raises:
        UsageError, ModelError, SpecError, DataError: see `open_trainable`, `open_student`, `open_training`, `distil`.
        StorageError: the folder cannot be written.
    """
    teacher = open_trainable(job.teacher, job.given)
    student = open_student(job.student, teacher, seed=options.train.seed)
    score = _scorer(job.val, teacher)
    device = device_before(options.train)

    def line(name: str, one: Trainable) -> Line:
        return Line(name, None if score is None else points(score, one, device), flops(one), parameters(one))

    lines = [line("teacher", teacher)]
    if score is not None and lines[0].score is not None and job.taught:
        check_knows(lines[0].score, score, "the teacher")
    lines.append(line("student before", student))
    trained, notes = distil_from(
        job.data, teacher if job.taught else None, student, options, out, score=score, progress=progress
    )
    lines.append(replace(lines[1], name="student after", score=trained.score))
    return Distilled(student, trained, score.metric if score else "", tuple(lines), notes)


def distil_from(
    data: Path,
    teacher: Trainable | None,
    student: Trainable,
    options: DistilOptions,
    out: Path,
    *,
    score: Scorer | None = None,
    progress: Progress | None = None,
) -> tuple[Trained, tuple[str, ...]]:
    """Train `student` on the images of a folder, and save it in `out` beside the training's log and checkpoints.

    Returns:
        (what the training came to, notes on the data).

    Raises:
        UsageError, DataError, SpecError: see `open_training` and `distil`.
        StorageError: the folder cannot be written.
    """
    opened = open_training(
        data,
        student.spec,
        labels=options.labels,
        augment=augmentation(options.augmentation, student.spec.task) or False,
        seed=options.train.seed,
    )
    trained = distil(
        teacher,
        student,
        opened,
        options,
        out,
        score=score,
        progress=progress,
        data_sha256=opened.sha256,
    )
    save_trainable(student, out)
    return trained, opened.notes


def _scorer(val: Path | None, teacher: Trainable) -> Scorer | None:
    """Return what scores on the validation images; where they have no labels, by agreement with the teacher."""
    if val is None:
        return None
    return scorer(teacher, open_dataset(val, spec=teacher.spec, holdout=0).val)
