"""Images of one purpose and what is known about them, read one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.data.images import SUFFIXES, Pixels, decode_image
from vitesse.errors import DataError

VAL_NAMES = ("val", "valid", "validation")
CALIB_NAMES = ("calib", "calibration")
TRAIN_NAMES = ("train", "training")
MOST_CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Sample:
    """One image on disk. `label` is its class index, None where unknown; `size` (height, width) where announced."""

    path: Path
    image_id: int
    label: int | None = None
    size: tuple[int, int] | None = None

    def read(self) -> Pixels:
        """Decode the image; raises DataError when it is damaged or has another size than the labels announce."""
        pixels = decode_image(self.path)
        if self.size is not None and pixels.shape[:2] != self.size:
            (height, width), (told_height, told_width) = pixels.shape[:2], self.size
            raise DataError(
                f"{self.path} is {width}×{height} (width×height)",
                expected=f"{told_width}×{told_height}, as the JSON says: its boxes would lie elsewhere",
                cause="the image was resized or turned after labelling",
                fix="put the labelled image back, or correct width and height in the JSON",
            )
        return pixels


@dataclass(frozen=True, eq=False)
class Truth:
    """The labelled objects of one image.

    boxes_xyxy: (n, 4) float64 in pixels; labels: (n,) int64 class indices of the model; iscrowd: (n,) bool;
    area: (n,) float64 in square pixels (of the object, not of the box, where the data says so).
    """

    boxes_xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    area: NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Images of one purpose, read one at a time. `truth` maps image_id → labelled objects, None without boxes."""

    samples: tuple[Sample, ...]
    truth: Mapping[int, Truth] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[Sample, Pixels]]:
        for sample in self.samples:
            yield sample, sample.read()

    @property
    def labelled(self) -> bool:
        """Whether there is something to measure against: boxes, or a class for every image."""
        return self.truth is not None or (
            bool(self.samples) and all(sample.label is not None for sample in self.samples)
        )

    def spread(self, count: int) -> Split:
        """Return at most `count` images, taken evenly from first to last, so that every class folder is in."""
        if count >= len(self):
            return self
        chosen = [index * len(self) // count for index in range(count)]
        return replace(self, samples=tuple(self.samples[index] for index in chosen))


def find_images(folder: Path) -> list[Path]:
    """Return all image files below `folder`, by suffix, sorted; hidden files and folders are passed over."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(root, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def split_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the subfolder with one of `names`, also as COCO writes them: val2017."""
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    for name in names:
        for entry in entries:
            if entry.name.lower().rstrip("0123456789") == name:
                return entry
    return None


def hold_out(split: Split, share: float, folder: Path) -> tuple[Split, Split]:
    """Return (rest, held out): about `share` of the images, at least 1 and at most 512, never all of them.

    Chosen by the hash of each image's relative path: the same on every machine, spread over all classes, and
    little changed when images are added.
    """
    count = (
        min(max(1, round(share * len(split))), MOST_CALIBRATION_IMAGES, len(split) - 1) if share > 0 else 0
    )
    ranked = sorted(split.samples, key=lambda sample: hashlib.sha256(_name(sample.path, folder)).digest())
    held = {sample.image_id for sample in ranked[:count]}
    rest = tuple(sample for sample in split.samples if sample.image_id not in held)
    return replace(split, samples=rest), replace(
        split, samples=tuple(sample for sample in split.samples if sample.image_id in held)
    )


def fingerprint(folder: Path, splits: Iterable[Split]) -> str:
    """Return a hex sha256 over names, sizes and labels of every split; no pixel is read."""
    digest = hashlib.sha256()
    for number, split in enumerate(splits):
        for sample in split.samples:
            size = sample.path.stat().st_size
            digest.update(_name(sample.path, folder) + f"|{number}|{size}|{sample.label}\n".encode())
            objects = None if split.truth is None else split.truth.get(sample.image_id)
            if objects is not None:
                for array in (objects.boxes_xyxy, objects.labels, objects.iscrowd, objects.area):
                    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _name(path: Path, folder: Path) -> bytes:
    return os.path.relpath(path, folder).encode(errors="surrogateescape")
