"""Which images of a folder are trained on, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.data.class_folders import find_class_folders, read_class_folders
from vitesse.data.coco_json import find_annotations, read_coco
from vitesse.data.split import (
    CALIB_NAMES,
    TRAIN_NAMES,
    VAL_NAMES,
    Sample,
    Split,
    Truth,
    find_images,
    split_folder,
)
from vitesse.errors import DataError
from vitesse.spec import ModelSpec, Task


def read_training(folder: Path, spec: ModelSpec, labels: bool) -> tuple[Split, tuple[str, ...]]:
    """Return the images to train on and notes; no pixel is read yet.

    Taken is the part called `train` (or `instances_train.json`), else the whole folder where nothing in it is set
    apart, else what is set apart for calibration: never what is verified on.

    Args:
        labels: whether labels are wanted; without, the images are returned bare, whatever lies beside them.

    Raises:
        DataError: no folder, no images, only validation images, damaged labels, labels of other classes or of the
            other task, or none where they are wanted.
    """
    if not folder.is_dir():
        raise DataError(
            f"no folder at {folder}",
            expected="a folder of training images",
            cause="a typing error, or the name of a file",
        )
    names, note = _part(folder)
    split, notes = _labelled(folder, names, spec) if labels else (_bare(folder, names), ())
    if not split.samples:
        raise DataError(
            f"no training images in {folder}",
            expected="JPEG, PNG, WebP, BMP, TIFF or GIF files, below train/ or in the folder itself",
            fix="name the folder that holds them",
        )
    return split, (*([note] if note else ()), *notes)


def _part(folder: Path) -> tuple[Sequence[str], str]:
    """Return the names of the part to train on, none for the whole folder, and a note."""
    if _has(folder, TRAIN_NAMES):
        return TRAIN_NAMES, ""
    if _has(folder, CALIB_NAMES):
        return CALIB_NAMES, "trained on the images set apart for calibration: the folder has no train/"
    if _has(folder, VAL_NAMES):
        raise DataError(
            f"{folder} has images to verify on and none to train on",
            expected="train/ or instances_train.json",
            cause="a data set without its training images; a network trained on what verifies it proves nothing",
            fix="name the folder of the training images",
        )
    return (), ""


def _has(folder: Path, names: Sequence[str]) -> bool:
    return split_folder(folder, names) is not None or find_annotations(folder, names) is not None


def _root(folder: Path, names: Sequence[str]) -> Path:
    return split_folder(folder, names) or folder


def _annotations(folder: Path, names: Sequence[str]) -> Path | None:
    """The COCO file of the part; one that lies alone in the part's own folder counts, whatever its name."""
    found = find_annotations(folder, names)
    root = _root(folder, names)
    return found if found is not None or (names and root == folder) else find_annotations(root)


def _bare(folder: Path, names: Sequence[str]) -> Split:
    """The images without labels: those a COCO file lists, else all of the part."""
    annotations = _annotations(folder, names)
    if annotations is not None:
        return replace(read_coco(annotations, folder, names, ())[0], truth=None)
    paths = find_images(_root(folder, names))
    return Split(tuple(Sample(path, index) for index, path in enumerate(paths)))


def _labelled(folder: Path, names: Sequence[str], spec: ModelSpec) -> tuple[Split, tuple[str, ...]]:
    annotations = _annotations(folder, names)
    root = _root(folder, names)
    if spec.task is Task.DETECTION:
        if annotations is None:
            raise _unfit(root, spec, "class folders" if find_class_folders(root, spec.labels) else "")
        split, _ = read_coco(annotations, folder, names, spec.labels)
        return _with_objects(split, annotations), ()
    classes = find_class_folders(root, spec.labels)
    if not classes:
        raise _unfit(root, spec, "boxes" if annotations is not None else "")
    split, _, note = read_class_folders(classes, spec.labels)
    return split, ((note,) if note else ())


def _with_objects(split: Split, path: Path) -> Split:
    """Refuse labels in which there is nothing: crowds and boxes without area teach nothing either."""
    if any(_teaches(truth).any() for truth in (split.truth or {}).values()):
        return split
    raise DataError(
        f"{path} labels {len(split)} images and not one object",
        expected="annotations with boxes (a few images without any are fine)",
        cause="an export without labels, or of crowds only",
        fix="export the boxes too, or train without labels from a teacher: --no-labels",
    )


def _teaches(truth: Truth) -> NDArray[np.bool_]:
    sides = truth.boxes_xyxy[:, 2:] - truth.boxes_xyxy[:, :2]
    return ~truth.iscrowd & (sides > 0).all(axis=1)


def _unfit(root: Path, spec: ModelSpec, found: str) -> DataError:
    """What to say where a folder has no labels, or those of the other task."""
    detects = spec.task is Task.DETECTION
    wanted = (
        "COCO annotations: instances_train.json, or annotations.json beside the images"
        if detects
        else "one folder per class, named like the model's labels"
    )
    kind = "finds objects" if detects else "classifies images"
    return DataError(
        f"{root} has {found or 'no labels'}, and the model {kind}",
        expected=wanted,
        cause="data of another task" if found else "images that nobody labelled, or a folder above or below",
        fix="name the folder with the labels, or train without them from a teacher: --no-labels",
    )
