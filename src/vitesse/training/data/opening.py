"""A folder → images to train on, all of them looked at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from vitesse.data.split import Split, fingerprint
from vitesse.errors import OutOfRange, UsageError
from vitesse.spec import ModelSpec, Task
from vitesse.training.data.augment import Augmentation, Augmenter, usual
from vitesse.training.data.reading import read_training
from vitesse.training.data.store import Opened, Prepare, open_store
from vitesse.training.data.targets import FlatObjects, flat_objects
from vitesse.training.data.training_data import TrainingData

# The share of the free memory that decoded images may fill where no other bound is given.
_SHARE = 0.25


def open_training(
    folder: Path,
    spec: ModelSpec,
    *,
    labels: bool = True,
    augment: bool | Augmentation = True,
    seed: int = 0,
    memory_mb: float | None = None,
) -> TrainingData:
    """Open images to train on: COCO JSON, class folders, or images alone.

    Every image is decoded once now, by threads, and resized as the model's validation images are; what cannot be read
    is left out and named in the notes. Where all fit into memory they are not decoded again.

    Args:
        folder: the images, with or without `train/` or `instances_train.json`; what it sets apart to verify on is
            never taken.
        spec: the model's: size and normalisation, task, classes.
        labels: whether batches have labels; False takes images alone, for learning from a teacher.
        augment: True for what is usual for the task, or how; False leaves the images as they are.
        seed: 0 or more, of order and augmentation.
        memory_mb: how much the decoded images may fill, in units of 1e6 bytes; a quarter of the free memory where it
            is None.

    Raises:
        DataError: no images, no labels or those of other classes or of the other task, labels without one object,
            boxes that are no numbers, more than 1 % of the images damaged.
        SpecError: a model whose input has no single size.
        UsageError: a rotation for detection, or a negative seed.
    """
    how = usual(spec.task) if augment is True else augment or None
    if seed < 0:
        raise OutOfRange("seed", seed, expected="0 or more")
    if how is not None and how.rotation and spec.task is Task.DETECTION:
        raise UsageError(
            f"rotation is {how.rotation}° for a detector",
            expected="0: the tight box of a turned object is not known from its box",
        )
    load = Prepare(spec)
    split, notes = read_training(Path(folder), spec, labels)
    memory = psutil.virtual_memory().available * _SHARE if memory_mb is None else memory_mb * 1e6
    opened = open_store(split.samples, load, int(memory))
    objects, dropped = _objects(split, opened, load, Augmentation.visible if how is None else how.visible)
    note = (
        (f"{dropped} boxes without area, or mostly outside of their image, are left out",) if dropped else ()
    )
    usable = [index for index, placed in enumerate(opened.placements) if placed is not None]
    return TrainingData(
        task=spec.task,
        usable=np.array(usable, np.int64),
        store=opened.store,
        augmenter=Augmenter(spec.preprocessing),
        classes=_classes(split) if labels and spec.task is Task.CLASSIFICATION else None,
        objects=objects,
        augmentation=how,
        seed=seed,
        sha256=fingerprint(Path(folder), (split,)),
        notes=(*notes, *opened.notes, *note),
    )


def _classes(split: Split) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([-1 if sample.label is None else sample.label for sample in split.samples], np.int64)


def _objects(split: Split, opened: Opened, load: Prepare, visible: float) -> tuple[FlatObjects | None, int]:
    if split.truth is None:
        return None, 0
    truths = [split.truth.get(sample.image_id) for sample in split.samples]
    return flat_objects(truths, opened.placements, load.size, visible)
