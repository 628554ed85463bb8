"""COCO annotations: find the JSON and its images, check both, turn category ids into the model's classes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.data.boxes import xywh_to_xyxy
from vitesse.data.class_names import first_of, match_names
from vitesse.data.split import Sample, Split, Truth
from vitesse.errors import DataError


def find_annotations(folder: Path, names: Sequence[str] = ()) -> Path | None:
    """Return the COCO JSON of a split (`instances_val.json`, `val/annotations.json` …), or of the folder as a whole.

    Args:
        folder: the data set's folder.
        names: the names the split may go by; empty for a folder without splits.

    Raises:
        DataError: a file named like COCO annotations cannot be read, or several could be meant.
    """
    places = [folder, folder / "annotations"]
    if names:
        for name in names:
            inside = [folder / name / file for file in ("annotations.json", "_annotations.coco.json")]
            beside = [
                found
                for place in places
                for pattern in (f"instances_{name}.json", f"instances_{name}[0-9]*.json", f"{name}.json")
                for found in sorted(place.glob(pattern))
            ]
            for path in (*beside, *inside, *sorted((folder / name).glob("instances_*.json"))):
                if path.is_file():
                    return path
        return None
    for path in (place / file for place in places for file in ("annotations.json", "_annotations.coco.json")):
        if path.is_file():
            return path
    candidates = sorted(path for path in folder.glob("*.json") if _looks_like_coco(path))
    if len(candidates) > 1:
        raise DataError(
            f"{folder} holds several COCO files: {', '.join(path.name for path in candidates)}",
            expected="one, or a pair named instances_val.json and instances_calib.json",
            fix="rename the one to verify on to instances_val.json",
        )
    return candidates[0] if candidates else None


def _looks_like_coco(path: Path) -> bool:
    """A file called instances… is meant to be COCO even when damaged; any other must show its keys."""
    if path.name.startswith("instances"):
        return True
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, OSError):
        return False
    return isinstance(raw, dict) and {"images", "annotations"} <= set(raw)


def read_coco(
    path: Path, folder: Path, names: Sequence[str], labels: Sequence[str]
) -> tuple[Split, tuple[str, ...]]:
    """Read a COCO JSON into a split with ground truth, and the class names by index.

    Args:
        path: the JSON.
        folder: the data set's folder; images are looked for in it, beside the JSON, in `images/` and in the split's
            own folder, and nowhere outside of it.
        names: the split's names, `val` and the like.
        labels: the model's class names by index; empty when unknown.

    Raises:
        DataError: invalid JSON, absent or duplicated entries, impossible boxes, absent files, classes the model
            does not have.
    """
    raw = _parse(path)
    categories = _categories(raw, path)
    images = _images(raw, path)
    class_of, class_names = _classes(categories, _used(raw, categories, path), labels, path)
    truth = _truth(raw, images, class_of, path)
    base = _image_folder(images, path, folder, names)
    samples = []
    for image_id, image in images.items():
        height, width = image.get("height"), image.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        samples.append(Sample(base / image["file_name"], image_id, size=size))
    return Split(tuple(samples), truth), class_names


def _parse(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}",
            expected="COCO annotations",
            cause="the file was cut off or edited",
            fix="fetch or export it again",
        ) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list):
            raise DataError(
                f"{path} has no list {key!r}",
                expected="COCO annotations with images, annotations and categories",
                cause="another kind of JSON, or an export without labels",
                fix="export as COCO, or remove the file to use the images without labels",
            )
        if any(not isinstance(entry, dict) for entry in raw[key]):
            raise DataError(f"{path}: an entry of {key!r} is not an object", expected="COCO annotations")
    return dict(raw)


def _categories(raw: Mapping[str, Any], path: Path) -> dict[int, str]:
    if not raw["categories"]:
        raise DataError(
            f"{path} lists no categories",
            expected='entries such as {"id": 0, "name": "cat"}',
            fix="export the annotations with their categories",
        )
    return {
        key: str(entry.get("name", key)) for key, entry in _by_id(raw["categories"], "category", path).items()
    }


def _images(raw: Mapping[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    images = _by_id(raw["images"], "image", path)
    if not images:
        raise DataError(f"{path} lists no images", expected="at least one entry in 'images'")
    nameless = [key for key, image in images.items() if not isinstance(image.get("file_name"), str)]
    if nameless:
        raise DataError(f"{path}: image {nameless[0]} has no file_name", expected="the name of its file")
    return images


def _by_id(entries: Sequence[dict[str, Any]], kind: str, path: Path) -> dict[int, dict[str, Any]]:
    for entry in entries:
        if not isinstance(entry.get("id"), int) or isinstance(entry["id"], bool):
            raise DataError(f"{path}: {kind} id {entry.get('id')!r} is no number", expected="a whole number")
    twice = [key for key, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: {len(twice)} {kind} id{'s' * (len(twice) > 1)} used twice: {first_of(twice)}",
            expected=f"one id for each {kind}",
            cause="two exports joined without renumbering",
            fix="renumber one of them",
        )
    return {entry["id"]: entry for entry in entries}


def _used(raw: Mapping[str, Any], categories: Mapping[int, str], path: Path) -> set[int]:
    named = [annotation.get("category_id") for annotation in raw["annotations"]]
    unknown = sorted({str(key) for key in named if not _known(key, categories)})
    if unknown:
        raise DataError(
            f"{path}: annotations name category {first_of(unknown)}, which 'categories' does not list",
            expected=f"one of the {len(categories)} listed ids: {first_of(list(categories))}",
            cause="categories were removed or renumbered after labelling",
            fix="export the annotations with their categories",
        )
    return set(named)


def _known(key: object, entries: Mapping[int, Any]) -> bool:
    """Whether an id from the JSON, which may be anything, is one of the listed ones."""
    return isinstance(key, int | float) and key in entries


def _classes(
    categories: Mapping[int, str], used: set[int], labels: Sequence[str], path: Path
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Map category id → class index: by name where the model's names are known, else by ids 0 … n-1."""
    ids = sorted(categories)
    contiguous = ids == list(range(len(ids)))
    if not labels:
        return {key: index for index, key in enumerate(ids)}, tuple(categories[key] for key in ids)
    by_name = match_names([categories[key] for key in ids], labels)
    unknown = [key for key, index in zip(ids, by_name, strict=True) if index is None]
    if not any(key in used for key in unknown):
        found = {key: index for key, index in zip(ids, by_name, strict=True) if index is not None}
        return found, tuple(labels)
    if contiguous and len(ids) == len(labels):
        return {key: key for key in ids}, tuple(labels)
    raise DataError(
        f"{path} has {len(ids)} categories, {len(unknown)} of them unknown to the model: "
        f"{first_of([categories[key] for key in unknown])}",
        expected=f"the model's {len(labels)} classes: {first_of(list(labels))}",
        cause="labels of another data set, or a spec with the wrong labels",
        fix="use the data the model was trained for, or correct `labels` in the spec",
    )


def _truth(
    raw: Mapping[str, Any], images: Mapping[int, Any], class_of: Mapping[int, int], path: Path
) -> dict[int, Truth]:
    rows: dict[int, list[tuple[list[float], int, bool, float]]] = {key: [] for key in images}
    for annotation in raw["annotations"]:
        if not _known(annotation.get("image_id"), images):
            raise DataError(
                f"{path}: annotation {annotation.get('id')} belongs to image {annotation.get('image_id')!r}",
                expected="an id listed in 'images'",
                cause="images were removed from the list, or two files were mixed up",
            )
        box = _box(annotation, path)
        told = annotation.get("area")  # of the object's outline; the box's where it is not given
        area = float(told) if isinstance(told, int | float) else box[2] * box[3]
        label = class_of[annotation["category_id"]]
        rows[annotation["image_id"]].append((box, label, bool(annotation.get("iscrowd", 0)), area))
    return {key: _objects(found) for key, found in rows.items()}


def _objects(rows: Sequence[tuple[list[float], int, bool, float]]) -> Truth:
    return Truth(
        xywh_to_xyxy(np.array([row[0] for row in rows], np.float64).reshape(-1, 4)),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.bool_),
        np.array([row[3] for row in rows], np.float64),
    )


def _box(annotation: Mapping[str, Any], path: Path) -> list[float]:
    box = annotation.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if not isinstance(box, list) or not numbers or not np.isfinite(box).all():
        raise DataError(
            f"{path}: annotation {annotation.get('id')} has the box {box!r}",
            expected="[left, top, width, height] in pixels",
        )
    if box[2] < 0 or box[3] < 0:
        raise DataError(
            f"{path}: annotation {annotation.get('id')} has a box of negative size: {box}",
            expected="[left, top, width, height] in pixels",
            cause="corners in swapped order, or written as [left, top, right, bottom]",
            fix="export the boxes as COCO writes them",
        )
    return [float(side) for side in box]


def _image_folder(images: Mapping[int, Any], path: Path, folder: Path, names: Sequence[str]) -> Path:
    """Return the folder in which all images lie: that of the split, `images/`, or the JSON's own."""
    files = [image["file_name"] for image in images.values()]
    stem = path.stem.removeprefix("instances_")
    own = [base / name for base in (folder, folder / "images") for name in (stem, *names)]
    bases = [
        base
        for base in (*own, folder / "images", path.parent / "images", path.parent, folder)
        if base.is_dir()
    ]
    absent_of: dict[Path, list[str]] = {}
    for base in bases:
        absent_of[base] = [file for file in files if not (base / file).is_file()]
        if not absent_of[base]:
            break
    base = min(absent_of, key=lambda candidate: len(absent_of[candidate]))
    inside = os.path.normpath(folder)
    outside = [file for file in files if not Path(os.path.normpath(base / file)).is_relative_to(inside)]
    if outside:
        raise DataError(
            f"{path} names files outside of the data folder: {first_of(outside)}",
            expected=f"paths relative to a folder in {folder}",
            fix="write file_name relative to the images' folder",
        )
    absent = absent_of[base]
    if absent:
        raise DataError(
            f"{path} names {len(absent)} of {len(files)} images that are not there: {first_of(absent)}",
            expected=f"every file_name below one of: {', '.join(sorted({str(base) for base in bases}))}",
            cause="images not unpacked, or moved",
            fix="put the images beside the JSON, or into images/",
        )
    return base
