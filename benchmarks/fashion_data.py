"""Training images for the models of examples/fashion, made from the 60,000 training items of Fashion-MNIST.

    python benchmarks/fashion_data.py images OUT [--count 60000]                OUT/train/CLASS/INDEX.png, 28×28 gray
    python benchmarks/fashion_data.py scenes OUT --count 20000 [--seed 1] [--workers 16]
                                                      OUT/train/INDEX.jpg, 256×256, and OUT/instances_train.json (COCO)

Items come from Debian's package dataset-fashion-mnist, or from a folder with its files train-images-idx3-ubyte and
train-labels-idx1-ubyte, packed with gzip or not (--items FOLDER). Test items are never read. Needs numpy and Pillow.

Scenes: 1 to 6 items, longest side 36 to 110 px, aspect ±20 % at most, mirrored half the time, tinted, over gradients,
smooth noise, stripes and plain shapes. Two items overlap with an IoU below 0.3 and in less than 35 % of the smaller
one; later items lie on top. A box is the tight box of the item's pixels of gray value 16 or more. A scene depends on
the seed, its number and the version of Pillow alone, however many workers there are.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ITEMS = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIDE = 256
QUALITY = 92
LONGEST = (36, 110)
ASPECT = 1.2
OPAQUE = 24  # gray value from which nothing shines through
VISIBLE = 16  # gray value from which a pixel belongs to the item
MOST_IOU, MOST_COVERED = 0.3, 0.35

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom; in pixels


@dataclass(frozen=True)
class Items:
    """images: (n, 28, 28) uint8; labels: (n,) uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_items(folder: Path) -> Items:
    images = _idx(folder, "train-images-idx3-ubyte", 16).reshape(-1, 28, 28)
    labels = _idx(folder, "train-labels-idx1-ubyte", 8)
    if len(images) != len(labels):
        raise SystemExit(
            f"{folder} has {len(images)} images and {len(labels)} labels: one file is another set's"
        )
    return Items(images, labels)


def _idx(folder: Path, name: str, header: int) -> NDArray[np.uint8]:
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.is_file() and not plain.is_file():
        raise SystemExit(
            f"no {packed}: apt-get install dataset-fashion-mnist, or name the folder of the files with --items"
        )
    content = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
    return np.frombuffer(content, np.uint8, offset=header)


# --- images


def write_images(items: Items, out: Path, count: int) -> int:
    """Write the first `count` items, each as a PNG in the folder of its class."""
    folders = [
        out / "train" / f"{index}_{name.replace('/', '-').replace(' ', '-')}"
        for index, name in enumerate(CLASSES)
    ]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index, (pixels, label) in enumerate(zip(items.images[:count], items.labels, strict=False)):
        Image.fromarray(pixels).save(folders[label] / f"{index:05}.png")
    return min(count, len(items.images))


# --- scenes


@dataclass(frozen=True)
class Scene:
    """image: RGB, 256×256; boxes and labels: of each item."""

    image: Image.Image
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]


def make_scene(items: Items, random: Generator) -> Scene:
    colours = background(random).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0)))
    for _ in range(random.integers(0, 5)):
        add_shape(canvas, random)
    pixels = np.asarray(canvas).astype(np.float32)
    boxes: list[Box] = []
    labels: list[int] = []
    for _ in range(random.integers(1, 7)):
        index = int(random.integers(len(items.images)))
        box = add_item(pixels, items.images[index], boxes, random)
        if box is not None:
            boxes.append(box)
            labels.append(int(items.labels[index]))
    pixels += grain(random)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return Scene(image, tuple(boxes), tuple(labels))


def background(random: Generator) -> Floats:
    """(3, 256, 256): a gradient between four corners, with smooth noise and, in two scenes of five, stripes."""
    middle = random.uniform(25, 235, (3, 1, 1))
    coarse = _spread((middle + random.normal(0, 34, (3, 2, 2))).astype(np.float32), 64)
    strength = random.uniform(0.1, 1)
    for cells, most in ((4, 44), (8, 38), (16, 30), (32, 22), (64, 15)):
        if random.random() < 0.6:
            coarse += _noise(cells, strength * random.uniform(2, most), random)
    picture = _spread(coarse, SIDE)
    if random.random() < 0.4:
        picture += stripes(random)
    return picture


def _noise(cells: int, strength: float, random: Generator) -> Floats:
    """(3, 64, 64) noise of that many cells a side, partly of one colour, partly of all."""
    colour = random.random()
    shared = random.standard_normal((1, cells, cells), np.float32)
    own = random.standard_normal((3, cells, cells), np.float32)
    return _spread(np.float32(strength) * ((1 - colour) * shared + colour * own).astype(np.float32), 64)


def _spread(small: Floats, side: int) -> Floats:
    """(3, n, n) → (3, side, side), smoothly."""
    weights = _weights(small.shape[1], side)
    return weights @ small @ weights.T


@cache
def _weights(cells: int, side: int) -> Floats:
    """(side, cells): what each of `cells` values counts at `side` places, linearly between centres."""
    place = (np.arange(side) + 0.5) * cells / side - 0.5
    low = np.floor(place).astype(int)
    part = place - low
    weights = np.zeros((side, cells), np.float32)
    np.add.at(weights, (np.arange(side), low.clip(0, cells - 1)), 1 - part)
    np.add.at(weights, (np.arange(side), (low + 1).clip(0, cells - 1)), part)
    return weights


def stripes(random: Generator) -> Floats:
    """(3, 256, 256): parallel stripes, soft or hard, added to the background."""
    angle = random.uniform(0, np.pi)
    turns = 2 * np.pi / random.uniform(10, 70)
    along = np.arange(SIDE, dtype=np.float32) * np.float32(turns)
    phase = np.float32(random.uniform(0, 2 * np.pi))
    wave = np.sin(along * np.float32(np.cos(angle)) + (along * np.float32(np.sin(angle)) + phase)[:, None])
    if random.random() < 0.4:
        wave = (wave * 6).clip(-1, 1)
    colour = random.uniform(5, 45) * random.uniform(0.1, 1, (3, 1, 1))
    return wave * colour.astype(np.float32)


def add_shape(canvas: Image.Image, random: Generator) -> None:
    """Draw a turned rectangle, an ellipse or a ring, partly transparent; its edges are drawn twice as fine."""
    radii = np.exp(random.uniform(np.log(8), np.log(56), 2))
    centre, angle = random.uniform(0, SIDE, 2), random.uniform(0, np.pi)
    kind = random.integers(3)
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    around = np.linspace(0, 2 * np.pi, 5 if kind == 0 else 49)[:-1] + (np.pi / 4 if kind == 0 else 0)
    outline = np.stack((np.cos(around), np.sin(around)), axis=1) * radii @ turn.T
    reach = int(np.ceil(np.abs(outline).max())) + 1
    mask = Image.new("L", (4 * reach, 4 * reach))
    pen = ImageDraw.Draw(mask)
    pen.polygon([tuple(point) for point in 2 * (outline + reach)], fill=int(random.uniform(90, 255)))
    if kind == 2:
        inner = outline * random.uniform(0.65, 0.9)
        pen.polygon([tuple(point) for point in 2 * (inner + reach)], fill=0)
    colour = tuple(int(value) for value in random.integers(0, 256, 3))
    left, top = (int(value) - reach for value in centre)
    canvas.paste(colour, (left, top, left + 2 * reach, top + 2 * reach), mask.reduce(2))


def add_item(pixels: Floats, item: NDArray[np.uint8], taken: Sequence[Box], random: Generator) -> Box | None:
    """Draw an item where it fits and return its box; None where 20 places do not fit."""
    gray, alpha = scaled(item, random)
    height, width = gray.shape
    for _ in range(20):
        left, top = int(random.integers(SIDE - width + 1)), int(random.integers(SIDE - height + 1))
        box = (left, top, left + width, top + height)
        if all(_apart(box, other) for other in taken):
            break
    else:
        return None
    saturation = random.uniform(0.2, 1) * (random.random() < 0.75)
    tint = random.uniform(0.7, 1.15) * (1 - saturation * random.random(3))
    place = pixels[top : top + height, left : left + width]
    place += alpha[..., None] * (gray[..., None] * tint.astype(np.float32) - place)
    return box


def scaled(item: NDArray[np.uint8], random: Generator) -> tuple[Floats, Floats]:
    """Return gray values (h, w), 0..255, and opacity (h, w), 0..1, of an item cut to its pixels and enlarged."""
    mask = item >= VISIBLE
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    gray = item[cut][:, :: -1 if random.random() < 0.5 else 1]
    longest = np.exp(random.uniform(*np.log(LONGEST)))
    stretch = np.exp(random.uniform(-0.5, 0.5) * np.log(ASPECT))
    high, wide = np.array(gray.shape) * longest / max(gray.shape)
    size = (max(4, round(wide * stretch)), max(4, round(high / stretch)))
    opacity = (gray / np.float32(OPAQUE)).clip(0, 1)
    light, cover = (
        np.asarray(
            Image.fromarray((part * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR), np.float32
        )
        for part in (gray * opacity / 255, opacity)
    )
    # enlarged as light through the item, which its opacity takes out again: black from outside darkens no edge
    return light / (cover / 255).clip(0.1), cover / 255


def _apart(one: Box, other: Box) -> bool:
    """Whether two boxes overlap little enough."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return True
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * high < MOST_COVERED * min(areas) and wide * high < MOST_IOU * (sum(areas) - wide * high)


def grain(random: Generator) -> Floats:
    """(256, 256, 1): fine noise as of a camera, cut out of one large sheet of it; often hardly any."""
    top, left = random.integers(0, SIDE, 2)
    return _sheet()[top : top + SIDE, left : left + SIDE, None] * np.float32(6 * random.random() ** 3)


@cache
def _sheet() -> Floats:
    return np.random.default_rng(0).standard_normal((2 * SIDE, 2 * SIDE), np.float32)


# --- many scenes


def write_scenes(items: Path, out: Path, count: int, seed: int, workers: int) -> int:
    """Write scenes 1 to `count` and their annotations; returns how many objects they have."""
    (out / "train").mkdir(parents=True, exist_ok=True)
    # one thread for each worker's matrix products: set before the workers import numpy
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    numbers = [range(first, min(first + 64, count + 1)) for first in range(1, count + 1, 64)]
    notes = []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        jobs = [pool.submit(_write_part, items, out, seed, part) for part in numbers]
        for job in jobs:
            notes += job.result()
    annotations = list(_annotations(notes))
    images = [
        {"id": number, "file_name": f"{number:06}.jpg", "width": SIDE, "height": SIDE}
        for number in range(1, count + 1)
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "instances_train.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    return len(annotations)


_read_once = cache(read_items)


def _write_part(items: Path, out: Path, seed: int, numbers: range) -> list[tuple[int, int, Box]]:
    """Write some scenes; return number, class and box of each of their objects."""
    notes = []
    for number in numbers:
        scene = make_scene(_read_once(items), np.random.default_rng((seed, number)))
        scene.image.save(out / "train" / f"{number:06}.jpg", quality=QUALITY)
        notes += [(number, label, box) for label, box in zip(scene.labels, scene.boxes, strict=True)]
    return notes


def _annotations(notes: Sequence[tuple[int, int, Box]]) -> Iterator[dict[str, object]]:
    for index, (number, label, (left, top, right, bottom)) in enumerate(notes, 1):
        wide, high = right - left, bottom - top
        yield {
            "id": index, "image_id": number, "category_id": label, "iscrowd": 0,
            "bbox": [left, top, wide, high], "area": wide * high,
        }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, count in (("images", 60_000), ("scenes", 20_000)):
        command = commands.add_parser(name)
        command.add_argument("out", type=Path)
        command.add_argument("--count", type=int, default=count)
        command.add_argument("--items", type=Path, default=ITEMS)
        if name == "scenes":
            command.add_argument("--seed", type=int, default=1)
            command.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count is {options.count}, and must be 1 or more")
    if options.command == "images":
        print(f"{write_images(read_items(options.items), options.out, options.count)} images")
    else:
        objects = write_scenes(options.items, options.out, options.count, options.seed, options.workers)
        print(f"{options.count} scenes with {objects} objects")


if __name__ == "__main__":
    main()
