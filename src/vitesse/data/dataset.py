"""A folder of images → what is verified on and what is calibrated on, never the same image in both.

Taken are COCO (a JSON beside its images), class folders (one per class) and bare images. `val/` and `calib/`
folders, `instances_val.json` and `instances_calib.json` are recognised; otherwise calibration images are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitesse.data.class_folders import find_class_folders, read_class_folders
from vitesse.data.coco_json import find_annotations, read_coco
from vitesse.data.split import (
    CALIB_NAMES,
    MOST_CALIBRATION_IMAGES,
    TRAIN_NAMES,
    VAL_NAMES,
    Sample,
    Split,
    find_images,
    fingerprint,
    hold_out,
    split_folder,
)
from vitesse.errors import DataError
from vitesse.spec import ModelSpec, Task

# Fewer calibration images than this and the ranges of activations are a matter of luck.
FEW = 32


@dataclass(frozen=True)
class Dataset:
    """What `--data` names.

    Args:
        kind: "coco", "classes" or "images".
        folder: as the user named it.
        val: verified and measured on.
        calib: calibrated on; may be empty when there is one image only.
        labels: class names by index, as the data has them (the model's, where they were matched by name).
        sha256: fingerprint of file names, sizes, labels and of who is in which split.
        notes: what was decided on the way, for the ledger.
    """

    kind: str
    folder: Path
    val: Split
    calib: Split
    labels: tuple[str, ...] = ()
    sha256: str = ""
    notes: tuple[str, ...] = ()


def open_dataset(
    folder: str | Path,
    calib_folder: str | Path | None = None,
    *,
    spec: ModelSpec | None = None,
    holdout: float = 0.1,
) -> Dataset:
    """Open the images to verify and to calibrate on; no pixel is read yet.

    Args:
        folder: COCO, class folders or bare images, with or without `val/` and `calib/` (or `train/`).
        calib_folder: images to calibrate on instead.
        spec: the model's; its labels decide which class is which, its task which labels count.
        holdout: share of the images held out for calibration where none are set apart; 0 holds none out.

    Raises:
        DataError: nothing there, no images, damaged or contradictory labels, classes the model does not have.
    """
    folder = _existing(folder)
    labels = spec.labels if spec else ()
    kind, val, names, notes = _open_part(folder, VAL_NAMES, spec, labels)
    if not val.samples:
        raise _no_images(folder)
    given = None if calib_folder is None else _existing(calib_folder)
    calib, calib_note = _calibration(folder, given, spec, labels)
    if calib is None:
        val, calib = hold_out(val, holdout, folder)
        calib_note = (
            f"{len(calib)} of {len(val) + len(calib)} images are held out for calibration, not verified on"
        )
    else:
        calib, overlap_note = _without(calib, val, given or folder)
        calib_note += overlap_note
    calib = calib.spread(MOST_CALIBRATION_IMAGES)
    if len(calib) < FEW:
        calib_note += f"; {FEW} or more would make INT8 ranges steadier"
    digest = fingerprint(folder, (val, calib))
    return Dataset(kind, folder, val, calib, names, digest, (*notes, calib_note))


def open_calibration(folder: Path) -> Split:
    """Open images to calibrate on and nothing else: those set apart in the folder, else all of it, at most 512.

    Raises:
        DataError: nothing there, or no images.
    """
    found, _ = _calibration(_existing(folder), None, None, ())
    split = found or _bare(find_images(folder))
    if not split.samples:
        raise _no_images(folder)
    return split.spread(MOST_CALIBRATION_IMAGES)


def _open_part(
    folder: Path, part: Sequence[str], spec: ModelSpec | None, labels: Sequence[str]
) -> tuple[str, Split, tuple[str, ...], tuple[str, ...]]:
    """Read the images to verify on: kind, split, class names, notes."""
    annotations = find_annotations(folder, part) or find_annotations(folder)
    if annotations is not None and (spec is None or spec.task is Task.DETECTION):
        split, names = read_coco(annotations, folder, part, labels)
        return "coco", split, names, ()
    notes = () if annotations is None else (f"{annotations.name} is not used: the model is a classifier",)
    root = split_folder(folder, part) or _only_training(folder) or folder
    classes = find_class_folders(root, labels)
    if classes and (spec is None or spec.task is Task.CLASSIFICATION):
        split, names, note = read_class_folders(classes, labels)
        return "classes", split, names, (*notes, *([note] if note else ()))
    set_apart = (
        [] if root != folder else [split_folder(folder, CALIB_NAMES), split_folder(folder, TRAIN_NAMES)]
    )
    paths = [
        path
        for path in find_images(root)
        if not any(apart is not None and path.is_relative_to(apart) for apart in set_apart)
    ]
    return "images", _bare(paths), tuple(labels), (*notes, "the images have no labels that fit the model")


def _calibration(
    folder: Path, given: Path | None, spec: ModelSpec | None, labels: Sequence[str]
) -> tuple[Split | None, str]:
    """Return the images set apart for calibration, with their labels where they have some, or None."""
    if given is not None:
        split = _bare(find_images(given))
        if not split.samples:
            raise _no_images(given)
        return split, f"calibrated on {given}"
    detection = spec is None or spec.task is Task.DETECTION
    annotations = find_annotations(folder, CALIB_NAMES) if detection else None
    if annotations is not None:
        return read_coco(annotations, folder, CALIB_NAMES, labels)[0], f"calibrated on {annotations.name}"
    root = split_folder(folder, CALIB_NAMES)
    if root is None and not _only_training(folder):
        root = split_folder(folder, TRAIN_NAMES)
    if root is None or not find_images(root):
        return None, ""
    classes = find_class_folders(root, labels)
    if classes and (spec is None or spec.task is Task.CLASSIFICATION):
        return read_class_folders(classes, labels)[0], f"calibrated on {root.name}/"
    return _bare(find_images(root)), f"calibrated on {root.name}/"


def _only_training(folder: Path) -> Path | None:
    """Return `train/` when all images of the folder lie in it: then it is the data set."""
    train = split_folder(folder, TRAIN_NAMES)
    if train is None:
        return None
    calib = split_folder(folder, CALIB_NAMES)
    others = (path for path in find_images(folder) if not path.is_relative_to(train))
    return None if any(calib is None or not path.is_relative_to(calib) for path in others) else train


def _without(calib: Split, val: Split, folder: Path) -> tuple[Split, str]:
    """Take the images to verify on out of those to calibrate on."""
    verified = {sample.path.resolve() for sample in val.samples}
    kept = tuple(sample for sample in calib.samples if sample.path.resolve() not in verified)
    if not kept:
        raise DataError(
            f"all {len(calib)} calibration images in {folder} are verified on as well",
            expected="other images: ranges fitted to the test make its result too good",
            fix="leave --calib-data away to hold some images out, or name another folder",
        )
    removed = len(calib) - len(kept)
    note = f"; {removed} of them left out, as they are verified on" if removed else ""
    return replace(calib, samples=kept), note


def _bare(paths: Sequence[Path]) -> Split:
    return Split(tuple(Sample(path, index) for index, path in enumerate(paths)))


def _existing(folder: str | Path) -> Path:
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(
            f"{path} is a file", expected="a folder of images", fix=f"name its folder: {path.parent}"
        )
    raise DataError(
        f"no folder at {path}",
        expected="a folder of images",
        cause="a typing error, or a moved folder",
        fix="name a folder that is there; a relative path begins in the current folder",
    )


def _no_images(folder: Path) -> DataError:
    files = [path for path in folder.rglob("*") if path.is_file()]
    suffixes = sorted({path.suffix or path.name for path in files})
    found = (
        f"{len(files)} {'file' if len(files) == 1 else 'files'}: {', '.join(suffixes[:6])}"
        if files
        else "it is empty"
    )
    return DataError(
        f"no images in {folder} ({found})",
        expected="JPEG, PNG, WebP, BMP, TIFF or GIF files",
        fix="name the folder that holds the images",
    )
