"""Class folders, one per class, as ImageFolder has them: `cat/`, `dog/`, or numbered `0_T-shirt-top/`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitesse.data.class_names import first_of, match_names
from vitesse.data.split import CALIB_NAMES, TRAIN_NAMES, VAL_NAMES, Sample, Split, find_images
from vitesse.errors import DataError

_NUMBERED = re.compile(r"(\d+)(?:[ ._-]+(.*))?")


def find_class_folders(folder: Path, labels: Sequence[str]) -> list[Path]:
    """Return the class folders in `folder`; an empty list when its images are not sorted into classes.

    They are when no image lies in `folder` itself and at least two subfolders hold some, or one that is named like
    one of the model's `labels`.
    """
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    reserved = {*VAL_NAMES, *CALIB_NAMES, *TRAIN_NAMES}
    folders = [entry for entry in entries if entry.is_dir() and entry.name.lower() not in reserved]
    if any(image.parent == folder for image in find_images(folder)):
        return []
    filled = [entry for entry in folders if find_images(entry)]
    named = match_names([_parts(entry)[1] for entry in filled], labels)
    enough = len(filled) > 1 or (len(filled) == 1 and named[0] is not None)
    return sorted(folders, key=_order) if enough else []


def read_class_folders(folders: Sequence[Path], labels: Sequence[str]) -> tuple[Split, tuple[str, ...], str]:
    """Return the labelled images, the class names by index, and a note when classes were matched by order only.

    With the model's `labels`, folders are matched by name; else by a leading number; else by sorted order.

    Raises:
        DataError: the folders cannot be the model's classes.
    """
    indices, note = _indices(folders, labels)
    names = list(labels) or [f"class {index}" for index in range(max(indices) + 1)]
    samples: list[Sample] = []
    for folder, index in zip(folders, indices, strict=True):
        if not labels:
            names[index] = _parts(folder)[1]
        samples += [
            Sample(path, len(samples) + count, index) for count, path in enumerate(find_images(folder))
        ]
    return Split(tuple(samples)), tuple(names), note


def _indices(folders: Sequence[Path], labels: Sequence[str]) -> tuple[list[int], str]:
    by_name = match_names([_parts(folder)[1] for folder in folders], labels)
    if all(index is not None for index in by_name):
        return [index for index in by_name if index is not None], ""
    numbers = [_parts(folder)[0] for folder in folders]
    numbered = [number for number in numbers if number is not None]
    fits = len(set(numbered)) == len(folders) and max(numbered) < (len(labels) or len(folders))
    if fits:
        return numbered, "classes are matched by the number that begins the folder name" if labels else ""
    unknown = [folder.name for folder, index in zip(folders, by_name, strict=True) if index is None]
    if not labels:
        return list(range(len(folders))), ""
    if len(folders) == len(labels) and len(unknown) == len(folders):
        return list(range(len(folders))), (
            f"classes are matched by sorted order, as no folder is named like one: {folders[0].name} is {labels[0]}"
        )
    raise DataError(
        f"{folders[0].parent} has {len(folders)} class folders, {len(unknown)} of them unknown to the model: "
        f"{first_of(unknown)}",
        expected=f"the model's {len(labels)} classes: {first_of(list(labels))}",
        cause="images of another data set, folders that are no classes, or a spec with the wrong labels",
        fix="name the folders like the model's labels, or 0_name, 1_name …; put unlabelled images into one folder",
    )


def _parts(folder: Path) -> tuple[int | None, str]:
    """`3_Dress` → (3, Dress); `12` → (12, "12"); `n01440764` → (None, n01440764)."""
    match = _NUMBERED.fullmatch(folder.name)
    return (int(match[1]), match[2] or folder.name) if match else (None, folder.name)


def _order(folder: Path) -> tuple[bool, int, str]:
    number = _parts(folder)[0]
    return number is None, number or 0, folder.name
