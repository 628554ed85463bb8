"""Small folders to train on, and specs of the models that would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def detector(size=(32, 48), labels=("cat", "dog"), **rules) -> ModelSpec:
    outputs = {"logits": "logits", "boxes": "boxes"}
    preprocessing = Preprocessing(size, mean=MEAN, std=STD, **rules)
    return ModelSpec(Task.DETECTION, Decode.DETR_SOFTMAX, "x", outputs, preprocessing, labels=tuple(labels))


def classifier(size=(16, 16), labels=("cat", "dog"), **rules) -> ModelSpec:
    preprocessing = Preprocessing(size, mean=MEAN, std=STD, **rules)
    return ModelSpec(
        Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, preprocessing, labels=tuple(labels)
    )


def picture(path: Path, value: int, size=(48, 32)) -> None:
    """A picture of noise, (width, height), that `value` alone decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def class_folders(folder: Path, each: int = 4, classes=("cat", "dog")) -> Path:
    for number, name in enumerate(classes):
        for index in range(each):
            picture(folder / name / f"{index}.png", number * each + index, (16, 16))
    return folder


def coco(folder: Path, boxes, size=(48, 32), stem="train", categories=("cat", "dog")) -> Path:
    """Write one picture per entry of `boxes`: a list of (category id, [left, top, width, height], more keys)."""
    images, annotations = [], []
    for number, found in enumerate(boxes):
        picture(folder / stem / f"{number}.png", number, size)
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
        for category, box, *more in found:
            entry = {"id": len(annotations), "image_id": number, "category_id": category, "bbox": box}
            annotations.append(entry | (more[0] if more else {}))
    listed = [{"id": index, "name": name} for index, name in enumerate(categories)]
    content = {"images": images, "annotations": annotations, "categories": listed}
    (folder / f"instances_{stem}.json").write_text(json.dumps(content))
    return folder


def letterboxed(spec_of, **more) -> ModelSpec:
    return spec_of(resize=Resize.LETTERBOX, **more)
