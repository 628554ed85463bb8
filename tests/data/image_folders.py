"""Folders of small pictures with and without annotations, and specs of models that could read them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vitesse.data.split import Split
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

BOX = {"bbox": [1, 2, 3, 4], "category_id": 0}


def detector(labels: Sequence[str] = ()) -> ModelSpec:
    """A detector of these classes."""
    outputs = {"logits": "logits", "boxes": "boxes"}
    rules = Preprocessing((8, 8))
    return ModelSpec(Task.DETECTION, Decode.DETR_SOFTMAX, "x", outputs, rules, labels=tuple(labels))


def classifier(labels: Sequence[str] = ()) -> ModelSpec:
    """A classifier of these classes."""
    rules = Preprocessing((8, 8))
    return ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, rules, labels=tuple(labels))


def images(folder: Path, *names: str) -> None:
    """Write pictures of 10×8 pixels."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)


def coco(
    path: Path,
    names: Sequence[str],
    annotations: Sequence[Mapping[str, Any]] = (),
    categories: Sequence[Mapping[str, Any]] = ({"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}),
) -> None:
    """Write the JSON of these pictures; an annotation belongs to the first unless it says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": index, "file_name": name, "width": 10, "height": 8} for index, name in enumerate(names)]
    filled = [{"id": index, "image_id": 0, **annotation} for index, annotation in enumerate(annotations, 1)]
    path.write_text(json.dumps({"images": entries, "annotations": filled, "categories": list(categories)}))


def files(split: Split) -> list[str]:
    """The names of a split's files, in its order."""
    return [sample.path.name for sample in split.samples]
