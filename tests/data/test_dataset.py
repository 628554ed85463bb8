"""Data sets as a whole: bare images, splits, what is held out for calibration, the fingerprint."""

import os

import numpy as np
import pytest
from PIL import Image

from data.image_folders import BOX, coco, files, images
from shared_data import shared
from vitesse.data.dataset import open_dataset
from vitesse.errors import DataError

# --- the shared data sets just open


def test_detr_fashion_opens_with_its_own_calibration_split():
    data = open_dataset(shared("detr_fashion"))
    assert (data.kind, len(data.val), len(data.calib), len(data.labels)) == ("coco", 300, 128, 10)
    assert sum(len(objects.labels) for objects in data.val.truth.values()) == 1021
    assert sum(len(objects.labels) for objects in data.calib.truth.values()) == 446
    assert data.val.samples[0].path.parent.name == "val"
    assert data.calib.samples[0].path.parent.name == "calib"
    assert data.val.samples[0].read().shape == (256, 256, 3)


def test_vit_fashion_opens_as_class_folders_labelled_by_their_digit():
    data = open_dataset(shared("vit_fashion"))
    assert (data.kind, len(data.val), len(data.calib)) == ("classes", 2000, 512)
    assert data.labels[3] == "Dress"
    for sample in data.val.samples[::100]:
        assert sample.path.parent.name.startswith(f"{sample.label}_")


def test_coco_ccby_opens_and_holds_a_tenth_out():
    data = open_dataset(shared("coco_ccby"))
    assert (data.kind, len(data.val), len(data.calib), len(data.labels)) == ("coco", 48, 5, 80)
    assert not set(files(data.val)) & set(files(data.calib))
    assert "5 of 53 images are held out" in data.notes[0]
    assert len(open_dataset(shared("coco_ccby"), holdout=0).val) == 53


# --- bare images and splits


def test_bare_images_are_found_in_all_depths_but_not_hidden_ones(tmp_path):
    images(tmp_path, "a.png", "deep/er/b.jpg", "c.JPEG", ".hidden/d.png", "._e.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = open_dataset(tmp_path, holdout=0)
    assert data.kind == "images"
    assert sorted(files(data.val)) == ["a.png", "b.jpg", "c.JPEG"]


def test_held_out_images_are_the_same_each_time_and_never_verified_on(tmp_path):
    images(tmp_path, *[f"{index:03}.png" for index in range(40)])
    first, second = open_dataset(tmp_path, holdout=0.25), open_dataset(tmp_path, holdout=0.25)
    assert files(first.calib) == files(second.calib)
    assert first.sha256 == second.sha256
    assert len(first.calib) == 10
    assert sorted(files(first.val) + files(first.calib)) == [f"{index:03}.png" for index in range(40)]
    assert "10 of 40 images are held out for calibration, not verified on" in first.notes[-1]


def test_single_image_is_verified_on_and_nothing_is_left_to_calibrate_on(tmp_path):
    images(tmp_path, "a.png")
    data = open_dataset(tmp_path)
    assert (len(data.val), len(data.calib)) == (1, 0)


@pytest.mark.parametrize("calib", ["calib", "calibration", "train"])
def test_split_folders_are_recognised(tmp_path, calib):
    images(tmp_path, *[f"val/{kind}/{index}.png" for kind in ("cat", "dog") for index in range(3)])
    images(tmp_path, *[f"{calib}/{kind}/{index}.png" for kind in ("cat", "dog") for index in range(4)])
    data = open_dataset(tmp_path)
    assert (data.kind, len(data.val), len(data.calib), data.labels) == ("classes", 6, 8, ("cat", "dog"))
    assert f"calibrated on {calib}/" in data.notes[-1]


def test_bare_images_beside_a_calib_folder_do_not_include_it(tmp_path):
    images(tmp_path, "a.png", "b.png", "calib/c.png")
    data = open_dataset(tmp_path)
    assert (files(data.val), files(data.calib)) == (["a.png", "b.png"], ["c.png"])


def test_train_alone_is_the_data_set(tmp_path):
    images(tmp_path, *[f"train/{kind}/{index}.png" for kind in ("cat", "dog") for index in range(5)])
    data = open_dataset(tmp_path)
    assert (data.kind, len(data.val), len(data.calib)) == ("classes", 9, 1)


def test_named_calibration_folder_overrides_the_own_one(tmp_path):
    images(tmp_path, "data/val/a.png", "data/calib/b.png", "more/c.png")
    data = open_dataset(tmp_path / "data", tmp_path / "more")
    assert files(data.calib) == ["c.png"]


def test_calibration_images_that_are_verified_on_are_left_out(tmp_path):
    images(tmp_path, "data/val/a.png", "data/val/b.png", "data/other/c.png")
    data = open_dataset(tmp_path / "data" / "val", tmp_path / "data")
    assert files(data.calib) == ["c.png"]
    assert "2 of them left out, as they are verified on" in data.notes[-1]
    with pytest.raises(DataError, match=r"all 2 calibration images .* are verified on as well"):
        open_dataset(tmp_path / "data" / "val", tmp_path / "data" / "val")


def test_at_most_512_calibration_images_are_taken_from_all_classes(tmp_path):
    images(tmp_path, "val/a/x.png", "val/b/x.png", "train/a/0.png")
    for kind in ("a", "b"):
        (tmp_path / "train" / kind).mkdir(exist_ok=True)
        for index in range(300):
            os.link(tmp_path / "val/a/x.png", tmp_path / "train" / kind / f"{index}x.png")
    data = open_dataset(tmp_path)
    assert len(data.calib) == 512
    assert {sample.label for sample in data.calib.samples} == {0, 1}


def test_fingerprint_follows_names_sizes_and_labels_but_not_the_folder(tmp_path):
    def digest(place, box=(1, 2, 3, 4), name="a.png", size=(10, 8)):
        folder = tmp_path / place
        folder.mkdir()
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / name)
        coco(folder / "annotations.json", [name], [{**BOX, "bbox": list(box)}])
        return open_dataset(folder).sha256

    digests = [
        digest("1"),
        digest("2", box=(1, 2, 3, 5)),
        digest("3", name="b.png"),
        digest("4", size=(90, 80)),
    ]
    assert len(set(digests)) == 4
    assert digest("5") == digests[0]


def test_nothing_to_open_is_said_in_plain_words(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.csv").write_text("1")
    images(tmp_path, "a.png")
    for path, words in (
        (tmp_path / "absent", "no folder at"),
        (tmp_path / "a.png", "is a file"),
        (tmp_path / "empty", "it is empty"),
        (tmp_path / "text", "1 file: .csv"),
    ):
        with pytest.raises(DataError) as caught:
            open_dataset(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="no images in"):
        open_dataset(tmp_path, tmp_path / "empty")


def test_unreadable_image_is_named_when_its_turn_comes(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    split = open_dataset(tmp_path, holdout=0).val
    stream = iter(split)
    assert next(stream)[1].shape == (8, 10, 3)
    with pytest.raises(DataError, match=r"b\.png"):
        next(stream)
