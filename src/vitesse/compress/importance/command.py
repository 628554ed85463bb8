"""The importance of a network's units on a folder of images: scores, measurements where asked for, files."""

from __future__ import annotations

from pathlib import Path

from vitesse.compress.distillation.tasks import task_loss
from vitesse.compress.importance.images import labelled_batches
from vitesse.compress.importance.page import render_page
from vitesse.compress.importance.record import FILE, Importance, write_importance
from vitesse.compress.importance.scores import scores
from vitesse.compress.importance.sensitivity import sensitivity
from vitesse.compress.importance.units import groups
from vitesse.compress.scoring import scorer
from vitesse.data.dataset import open_dataset
from vitesse.errors import UsageError
from vitesse.progress import Progress
from vitesse.sources.trainable import Trainable
from vitesse.storage import write_atomically

PAGE = "importance.html"


def find_importance(
    trainable: Trainable,
    data: Path,
    *,
    model: str,
    method: str = "taylor",
    images: int = 64,
    measure: bool = False,
    progress: Progress | None = None,
) -> Importance:
    """Score all units of a network, and measure what masking them costs.

    Scores are taken on images set apart for calibration, the metric on those to verify on: what a score says about
    images that it has not seen is what is measured. `bn` scores the backbone alone; where the sensitivity is
    measured, it is that of the backbone's groups.

    Args:
        data: COCO, class folders or bare images, as `vitesse optimize --data` takes them.
        model: what the network is called in the files.
        images: how many of each part, spread evenly; fewer where there are fewer.
        measure: whether to measure the sensitivity, one pass over the images for each mask.

    Raises:
        UsageError: no such method, or fewer than one image.
        DataError: no images, or labels that do not fit the network.
        ModelError: the loss of the network is not finite.
        NotVerified: without labels, it finds nothing to agree with.
    """
    if images < 1:
        raise UsageError(f"--images {images}", expected="1 or more")
    dataset = open_dataset(data, spec=trainable.spec)
    batches = []
    if method == "taylor":
        batches = labelled_batches(
            trainable, (dataset.calib if len(dataset.calib) else dataset.val).spread(images)
        )
    found = scores(trainable, method, batches, task_loss(trainable))
    judge, measured = None, None
    if measure:
        judge = scorer(trainable, dataset.val.spread(images))
        measured = sensitivity(trainable, judge, found, progress=progress)
    return Importance(
        model,
        trainable.kind,
        method,
        sum(map(len, batches)),
        groups(trainable),
        found,
        metric="" if judge is None else judge.metric,
        scored=0 if judge is None else len(judge.split),
        sensitivity=measured,
    )


def write_files(found: Importance, folder: Path) -> Path:
    """Write importance.json and the page with the pictures; return the page's path.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_importance(found, folder / FILE)
    write_atomically(folder / PAGE, render_page(found).encode())
    return folder / PAGE
