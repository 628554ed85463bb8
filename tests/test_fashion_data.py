"""The training images of the examples: made from training items alone, and like the images they are tested on."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmark_scripts import benchmark
from fashion import FOLDER
from vitesse.data.coco_json import find_annotations, read_coco
from vitesse.data.dataset import open_dataset
from vitesse.data.images import decode_image
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

script = benchmark("fashion_data")


def write_items(folder, count=40, packed=True):
    """Items whose pixels say which they are: a bright block, and a speck too dark to count."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.zeros((count, 28, 28), np.uint8)
    for index in range(count):
        images[index, 4:24, 2 : 10 + index % 12] = 100 + index
        images[index, 2, 2] = 15
    labels = np.arange(count, dtype=np.uint8) % 10
    for name, header, content in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        raw = bytes(header) + content.tobytes()
        path = folder / f"train-{name}-ubyte"
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(raw))
        else:
            path.write_bytes(raw)
    return images, labels


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_images_are_the_training_items_in_folders_of_their_classes(tmp_path, packed, capsys):
    images, labels = write_items(tmp_path / "items", packed=packed)
    script.main(["images", str(tmp_path / "out"), "--count", "25", "--items", str(tmp_path / "items")])
    assert capsys.readouterr().out == "25 images\n"
    files = sorted((tmp_path / "out" / "train").rglob("*.png"))
    assert len(files) == 25
    for file in files:
        assert (np.asarray(Image.open(file)) == images[int(file.stem)]).all()
        assert int(file.parent.name[0]) == labels[int(file.stem)]
    spec = ModelSpec(
        Task.CLASSIFICATION,
        Decode.LOGITS,
        "x",
        {"logits": "y"},
        Preprocessing((56, 56)),
        labels=script.CLASSES,
    )
    data = open_dataset(tmp_path / "out", spec=spec, holdout=0)
    assert sorted({sample.label for sample in data.val.samples}) == list(range(10))
    assert not any("order" in note for note in data.notes)  # matched by name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of the same 130 scenes, made by one worker and by two."""
    folder = tmp_path_factory.mktemp("scenes")
    write_items(folder / "items")
    for workers in ("1", "2"):
        command = [script.__file__, "scenes", folder / workers, "--count", "130", "--seed", "3"]
        command += ["--items", folder / "items", "--workers", workers]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return folder / "1", folder / "2"


def test_scenes_are_coco_and_the_same_for_any_number_of_workers(made):
    one, two = made
    assert (one / "instances_train.json").read_bytes() == (two / "instances_train.json").read_bytes()
    for number in (1, 64, 65, 130):
        name = f"train/{number:06}.jpg"
        assert (one / name).read_bytes() == (two / name).read_bytes()
    split, names = read_coco(find_annotations(one, ("train",)), one, ("train",), script.CLASSES)
    assert (len(split), names) == (130, script.CLASSES)
    assert decode_image(split.samples[0].path).shape == (256, 256, 3)


def test_another_seed_gives_other_scenes():
    items = script.Items(np.full((3, 28, 28), 200, np.uint8), np.array([1, 2, 3], np.uint8))
    first, again, other = (script.make_scene(items, np.random.default_rng((seed, 1))) for seed in (1, 1, 2))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


def test_a_box_is_the_tight_box_of_the_item():
    item = np.zeros((28, 28), np.uint8)
    item[6:16, 8:28] = 255
    item[0, 0] = 15  # too dark to belong to it
    for seed in range(20):
        pixels = np.zeros((256, 256, 3), np.float32)
        left, top, right, bottom = script.add_item(pixels, item, [], np.random.default_rng(seed))
        rows, columns = np.flatnonzero(pixels.any((1, 2))), np.flatnonzero(pixels.any((0, 2)))
        assert (left, top, right, bottom) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert 32 <= right - left <= 121
        assert 2 / 1.21 <= (right - left) / (bottom - top) <= 2 * 1.21


def test_two_boxes_may_touch_and_overlap_a_little():
    assert script._apart((0, 0, 10, 10), (10, 0, 20, 10))
    assert script._apart((0, 0, 10, 10), (7, 0, 17, 10))  # 30 % of each
    assert not script._apart((0, 0, 10, 10), (6, 0, 16, 10))  # 40 %
    assert not script._apart((0, 0, 100, 100), (0, 0, 10, 20))  # little of one, all of the other


def described(folder, stem):
    """Objects a scene, the quartiles of the longest side, and each picture's mean brightness."""
    content = json.loads((folder / f"instances_{stem}.json").read_text())
    longest = [max(entry["bbox"][2:]) for entry in content["annotations"]]
    light = [decode_image(path).mean() for path in sorted((folder / stem).glob("*.jpg"))]
    return len(longest) / len(light), np.percentile(longest, [25, 50, 75]), np.array(light)


def test_scenes_are_like_those_the_example_is_tested_on(made):
    objects, sides, light = described(made[0], "train")
    expected_objects, expected_sides, expected_light = described(FOLDER / "detr", "val")
    assert objects == pytest.approx(expected_objects, rel=0.12)
    assert sides == pytest.approx(expected_sides, rel=0.12)
    assert light.mean() == pytest.approx(expected_light.mean(), rel=0.1)
    assert light.std() == pytest.approx(expected_light.std(), rel=0.35)


def test_absent_items_and_impossible_counts_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        script.main(["images", str(tmp_path), "--items", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main(["scenes", str(tmp_path), "--count", "0"])
    assert "--count is 0, and must be 1 or more" in capsys.readouterr().err
