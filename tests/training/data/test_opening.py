"""What may be trained on, what is refused and in which words."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("psutil", reason="needs psutil")

import torch

from training.data.training_folders import class_folders, classifier, coco, detector, picture
from vitesse.data.images import decode_image
from vitesse.data.preprocess import feeds
from vitesse.data.split import Sample
from vitesse.errors import DataError, SpecError, UsageError
from vitesse.spec import Resize
from vitesse.training.data import Augmentation, decoding, open_training, store

CPU = torch.device("cpu")
BOX = (0, [4, 4, 10, 10])


def refusal(folder, spec, **options) -> str:
    with pytest.raises(DataError) as raised:
        open_training(folder, spec, **options)
    return str(raised.value)


def test_class_folders_give_the_models_classes_whatever_their_order(tmp_path):
    data = open_training(class_folders(tmp_path), classifier(labels=("dog", "cat")))
    labels = torch.cat([batch.labels for batch in data.epoch(0, 2, CPU)])
    assert data.images == 8
    assert data.labelled
    assert sorted(labels.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.classes[:4].tolist() == [1, 1, 1, 1]  # cat/ comes first on disk and is the model's second


def test_the_part_to_train_on_is_taken_and_what_is_verified_on_is_not(tmp_path):
    class_folders(tmp_path / "train", 3)
    class_folders(tmp_path / "val", 5)
    assert open_training(tmp_path, classifier()).images == 6
    coco(tmp_path / "boxes", [[BOX]] * 3, stem="train")
    coco(tmp_path / "boxes", [[BOX]] * 2, stem="val")
    assert open_training(tmp_path / "boxes", detector()).images == 3
    assert open_training(tmp_path / "boxes", detector(), labels=False).images == 3


def test_images_set_apart_for_calibration_are_trained_on_where_nothing_else_is_and_it_is_said(tmp_path):
    class_folders(tmp_path / "calib", 3)
    class_folders(tmp_path / "val", 5)
    data = open_training(tmp_path, classifier())
    assert data.images == 6
    assert "set apart for calibration" in data.notes[0]


def test_a_folder_with_images_to_verify_on_alone_is_refused(tmp_path):
    class_folders(tmp_path / "val")
    text = refusal(tmp_path, classifier())
    assert "has images to verify on and none to train on" in text
    assert "expected: train/ or instances_train.json" in text


def test_a_folder_without_images_is_refused(tmp_path):
    assert "no folder at" in refusal(tmp_path / "nothing", classifier())
    text = refusal(tmp_path, classifier(), labels=False)
    assert f"no training images in {tmp_path}" in text
    assert "next step: name the folder that holds them" in text


def test_labels_of_other_classes_are_refused(tmp_path):
    text = refusal(class_folders(tmp_path / "a"), classifier(labels=("sun", "moon", "star")))
    assert "unknown to the model: cat, dog" in text
    found = coco(tmp_path / "b", [[BOX], [(2, [1, 1, 5, 5])]], categories=("cat", "dog", "cow"))
    assert "1 of them unknown to the model: cow" in refusal(found, detector())


def test_data_of_the_other_task_is_refused(tmp_path):
    text = refusal(class_folders(tmp_path / "a"), detector())
    assert "has class folders, and the model finds objects" in text
    assert "COCO annotations" in text
    text = refusal(coco(tmp_path / "b", [[BOX]]), classifier())
    assert "has boxes, and the model classifies images" in text
    assert "one folder per class" in text


def test_images_without_labels_are_refused_where_labels_are_wanted_and_taken_where_not(tmp_path):
    for index in range(3):
        picture(tmp_path / f"{index}.png", index)
    for spec, kind in ((detector(), "finds objects"), (classifier(), "classifies images")):
        text = refusal(tmp_path, spec)
        assert f"has no labels, and the model {kind}" in text
        assert "--no-labels" in text
        data = open_training(tmp_path, spec, labels=False)
        (batch,) = data.epoch(0, 8, CPU)
        assert (len(batch), batch.labels, batch.objects, data.labelled) == (3, None, None, False)


@pytest.mark.parametrize(
    "found", [[], [(0, [4, 4, 10, 10], {"iscrowd": 1})], [(0, [4, 4, 0, 10])]], ids=["none", "crowd", "flat"]
)
def test_labels_in_which_there_is_no_object_are_refused(tmp_path, found):
    text = refusal(coco(tmp_path, [found, []]), detector())
    assert "labels 2 images and not one object" in text
    assert "without labels from a teacher" in text


def test_a_box_that_is_no_number_is_refused(tmp_path):
    text = refusal(coco(tmp_path, [[(0, [4, float("nan"), 5, 5])]]), detector())
    assert "annotation 0 has the box [4, nan, 5, 5]" in text


def test_one_damaged_image_of_many_is_named_and_left_out(tmp_path):
    class_folders(tmp_path, 100)
    (tmp_path / "cat" / "7.png").write_bytes((tmp_path / "cat" / "7.png").read_bytes()[:60])
    data = open_training(tmp_path, classifier())
    assert data.images == 199
    (note,) = data.notes
    assert note.startswith("1 of 200 training images cannot be used: ")
    assert "cat/7.png is damaged" in note
    assert note.endswith("they are left out")
    labels = torch.cat([batch.labels for batch in data.epoch(0, 199, CPU)])
    assert torch.bincount(labels).tolist() == [99, 100]


def test_more_damaged_images_than_one_in_a_hundred_are_refused(tmp_path):
    class_folders(tmp_path, 50)
    for index in (3, 4):
        (tmp_path / "cat" / f"{index}.png").write_bytes(b"")
    text = refusal(tmp_path, classifier())
    assert "2 of 100 training images cannot be used" in text
    assert "cat/3.png is empty (0 bytes)" in text
    assert "at most 1% of the images" in text


def test_a_picture_of_another_size_than_its_boxes_were_drawn_on_is_not_trained_on(tmp_path):
    coco(tmp_path, [[BOX]])
    picture(tmp_path / "train" / "0.png", 0, (96, 64))
    assert "would lie elsewhere" in refusal(tmp_path, detector())


def test_boxes_that_teach_nothing_are_left_out_and_counted(tmp_path):
    boxes = [[BOX, (1, [4, 4, 0, 3])], [(1, [100, 4, 20, 20])], [(0, [1, 1, 9, 9], {"iscrowd": 1}), BOX]]
    data = open_training(coco(tmp_path, boxes), detector(), augment=False)
    assert np.diff(data.objects.starts).tolist() == [1, 0, 1]
    assert "2 boxes without area, or mostly outside of their image, are left out" in data.notes


def test_a_model_without_one_input_size_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"many sizes: resize = 'shortest'(.|\n)*letterbox"):
        open_training(coco(tmp_path, [[BOX]]), detector(resize=Resize.SHORTEST))


def test_options_without_a_meaning_are_refused(tmp_path):
    coco(tmp_path, [[BOX]])
    with pytest.raises(UsageError, match="rotation is 5° for a detector"):
        open_training(tmp_path, detector(), augment=Augmentation(rotation=5))
    with pytest.raises(UsageError, match="seed is -1"):
        open_training(tmp_path, detector(), seed=-1)
    for wrong in ({"shift": 2}, {"zoom": 0.5}, {"erasing": float("nan")}, {"rotation": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Augmentation(**wrong)


def test_the_fingerprint_changes_with_a_label(tmp_path):
    first = open_training(coco(tmp_path, [[BOX]]), detector()).sha256
    path = tmp_path / "instances_train.json"
    content = json.loads(path.read_text())
    assert open_training(tmp_path, detector()).sha256 == first
    content["annotations"][0]["category_id"] = 1
    path.write_text(json.dumps(content))
    assert open_training(tmp_path, detector()).sha256 != first


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_pictures_of_the_models_size_come_as_the_model_sees_them(tmp_path, color):
    picture(tmp_path / "train/0.png", 5, (48, 32))
    spec = detector(color=color)
    (batch,) = open_training(tmp_path, spec, labels=False, augment=False).epoch(0, 1, CPU)
    expected = feeds([decode_image(tmp_path / "train/0.png")], spec)["x"]
    assert np.allclose(batch.images.numpy(), expected, atol=1e-6)


def test_processes_decode_what_threads_decode_and_damage_is_named(tmp_path, monkeypatch):
    coco(tmp_path, [[BOX]] * 200)
    (tmp_path / "train/7.png").write_bytes(b"no picture")
    alone = open_training(tmp_path, detector())
    asked = []
    monkeypatch.setattr(decoding, "_MANY", 10)
    monkeypatch.setattr(decoding, "_LEAST_CORES", 1)
    whole = store.decoded_in_processes
    monkeypatch.setattr(
        store, "decoded_in_processes", lambda *given: asked.append(given[-1]) or whole(*given[:-1], 3)
    )
    shared = open_training(tmp_path, detector())
    assert len(asked) == 1
    assert shared.notes == alone.notes
    assert "7.png" in shared.notes[0]
    assert shared.sha256 == alone.sha256
    for one, other in zip(alone.epoch(0, 50, CPU), shared.epoch(0, 50, CPU), strict=True):
        assert torch.equal(one.images, other.images)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one.objects, other.objects, strict=True))


def test_what_a_process_that_died_should_have_decoded_is_decoded_here(tmp_path):
    spec = detector()
    split = [Sample(tmp_path / f"{index}.png", index) for index in range(6)]
    for index in range(6):
        picture(tmp_path / f"{index}.png", index)
    load = store.Prepare(spec)

    def dying(sample):
        if sample.image_id == 1:
            os._exit(3)
        return load(sample)

    pixels = decoding.shared_pixels((6, 3, *load.size))
    placements = decoding.decoded_in_processes(split, dying, pixels, 2)
    assert [placed is None for placed in placements] == [False, True] * 3
    assert np.array_equal(pixels[4], load(split[4])[0])
