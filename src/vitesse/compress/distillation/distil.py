"""Train a student on a teacher's answers, on ground truth, or on both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from torch import nn

from vitesse.compress.distillation.options import DistilOptions
from vitesse.compress.distillation.student import check_pair
from vitesse.compress.distillation.tasks import make_task
from vitesse.errors import UsageError
from vitesse.progress import Progress
from vitesse.sources.trainable import Trainable
from vitesse.training.live_norm import live_norms
from vitesse.training.loop import Trained, train
from vitesse.training.source import BatchSource

__all__ = ["DistilOptions", "distil"]


def distil(
    teacher: Trainable | None,
    student: Trainable,
    data: BatchSource,
    options: DistilOptions,
    folder: Path,
    *,
    score: Callable[[nn.Module], float] | None = None,
    progress: Progress | None = None,
    data_sha256: str = "",
) -> Trained:
    """Train `student.module`, which afterwards holds the result on the CPU, in eval mode.

    Args:
        teacher: None: ordinary training on labels.
        folder: log and checkpoints; a run that was interrupted goes on from there.
        score: of the network, in points; the best scored weights are kept.
        data_sha256: fingerprint of the data, so that a run does not go on with other images.

    Raises:
        UsageError: teacher and student do not belong together, nothing to learn from, or an option that contradicts.
        DataError: labels are asked for and the data has none.
    """
    if teacher is None and not options.labels:
        raise UsageError(
            "neither a teacher nor labels",
            expected="at least one of the two to learn from",
            fix="give --teacher MODEL, or leave --no-labels away",
        )
    if teacher is None and options.features:
        raise UsageError("features without a teacher", expected="a teacher whose tokens are imitated")
    if teacher is not None:
        check_pair(teacher, student)
    task = make_task(teacher, student, options)
    # What else decides the result; the training's own options, the weights and the teacher are known to the loop.
    identity = {
        field.name: getattr(options, field.name) for field in fields(options) if field.name != "train"
    }
    identity["data"] = data_sha256
    with live_norms(student.module) if options.live_norms else nullcontext():
        trained = train(task, data, options.train, folder, score=score, progress=progress, identity=identity)
    student.module.eval()
    return trained
