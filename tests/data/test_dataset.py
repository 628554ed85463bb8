import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared_data import shared
from vitesse.data.class_names import match_names
from vitesse.data.dataset import open_dataset
from vitesse.errors import DataError
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

BOX = {"bbox": [1, 2, 3, 4], "category_id": 0}


def detector(labels=()):
    outputs = {"logits": "logits", "boxes": "boxes"}
    rules = Preprocessing((8, 8))
    return ModelSpec(Task.DETECTION, Decode.DETR_SOFTMAX, "x", outputs, rules, labels=tuple(labels))


def classifier(labels=()):
    rules = Preprocessing((8, 8))
    return ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, rules, labels=tuple(labels))


def images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)


def coco(
    path: Path, names, annotations=(), categories=({"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}), **more
):
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": index, "file_name": name, "width": 10, "height": 8} for index, name in enumerate(names)]
    filled = [{"id": index, "image_id": 0, **annotation} for index, annotation in enumerate(annotations, 1)]
    path.write_text(
        json.dumps({"images": entries, "annotations": filled, "categories": list(categories), **more})
    )


def files(split):
    return [sample.path.name for sample in split.samples]


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


# --- COCO


@pytest.mark.parametrize(
    ("json_name", "image_folder"),
    [
        ("annotations.json", "images"),
        ("annotations.json", "."),
        ("labels.json", "images"),
        ("_annotations.coco.json", "."),
        ("instances_val.json", "val"),
        ("instances_val.json", "images/val"),
        ("annotations/instances_val2017.json", "val2017"),
        ("val/annotations.json", "val"),
        ("val/annotations.json", "val/images"),
        ("valid/_annotations.coco.json", "valid"),
    ],
)
def test_coco_json_is_found_with_its_images(tmp_path, json_name, image_folder):
    names = [f"{index}.png" for index in range(4)]
    images(tmp_path / image_folder, *names)
    (tmp_path / "config.json").write_text('{"not": "coco"}')
    coco(tmp_path / json_name, names, [BOX])
    data = open_dataset(tmp_path, holdout=0)
    assert data.kind == "coco"
    assert files(data.val) == names
    assert data.val.samples[0].path.parent == tmp_path / image_folder
    assert data.val.truth[0].boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert data.val.truth[0].area.tolist() == [12]
    assert data.val.truth[3].boxes_xyxy.shape == (0, 4)


def test_category_ids_with_gaps_are_matched_to_the_model_by_name(tmp_path):
    images(tmp_path, "a.png")
    kinds = [{"id": 17, "name": "Dog"}, {"id": 90, "name": "tooth-brush"}]
    coco(
        tmp_path / "annotations.json",
        ["a.png"],
        [{**BOX, "category_id": 90}, {**BOX, "category_id": 17}],
        kinds,
    )
    data = open_dataset(tmp_path, spec=detector(["cat", "N/A", "dog", "N/A", "toothbrush"]))
    assert data.val.truth[0].labels.tolist() == [4, 2]
    assert open_dataset(tmp_path).val.truth[0].labels.tolist() == [1, 0]


def test_names_decide_over_ids_where_both_could(tmp_path):
    images(tmp_path, "a.png")
    coco(tmp_path / "annotations.json", ["a.png"], [BOX])
    assert open_dataset(tmp_path, spec=detector(["dog", "cat"])).val.truth[0].labels.tolist() == [1]
    assert open_dataset(tmp_path, spec=detector(["Katze", "Hund"])).val.truth[0].labels.tolist() == [0]


def test_classes_the_model_lacks_are_refused_with_both_numbers(tmp_path):
    images(tmp_path, "a.png")
    coco(tmp_path / "annotations.json", ["a.png"], [BOX])
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, spec=detector(["bird", "dog", "fish"]))
    assert "has 2 categories, 1 of them unknown to the model: cat" in str(caught.value)
    assert "the model's 3 classes: bird, dog, fish" in str(caught.value)


def test_unknown_category_without_a_box_does_no_harm(tmp_path):
    images(tmp_path, "a.png")
    coco(tmp_path / "annotations.json", ["a.png"], [{**BOX, "category_id": 1}])
    assert open_dataset(tmp_path, spec=detector(["dog"])).val.truth[0].labels.tolist() == [0]


def test_coco_json_that_names_absent_files_lists_some_and_counts_all(tmp_path):
    names = [f"{index}.png" for index in range(7)]
    images(tmp_path / "images", *names[:2])
    coco(tmp_path / "annotations.json", names)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert "names 5 of 7 images that are not there: 2.png, 3.png, 4.png and 2 more" in str(caught.value)
    assert str(tmp_path / "images") in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png"])
def test_file_name_that_points_outside_is_refused(tmp_path, name):
    images(tmp_path, "secret.png", "data/a.png")
    coco(tmp_path / "data" / "annotations.json", ["a.png", name])
    with pytest.raises(DataError, match="names files outside of the data folder"):
        open_dataset(tmp_path / "data")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"bbox": [5, 5, -3, 2], "category_id": 0}, r"box of negative size: \[5, 5, -3, 2\]"),
        ({"bbox": [5, 5, 2], "category_id": 0}, r"annotation 1 has the box \[5, 5, 2\]"),
        ({"bbox": [5, 5, 2, float("nan")], "category_id": 0}, "annotation 1 has the box"),
        ({"category_id": 0}, "annotation 1 has the box None"),
        (
            {"bbox": [1, 1, 2, 2], "category_id": 7},
            "annotations name category 7, which 'categories' does not list",
        ),
        ({"bbox": [1, 1, 2, 2]}, "annotations name category None"),
        ({"bbox": [1, 1, 2, 2], "category_id": [0]}, r"annotations name category \[0\]"),
        ({**BOX, "image_id": 9}, "annotation 1 belongs to image 9"),
        ({**BOX, "image_id": {}}, "annotation 1 belongs to image {}"),
    ],
)
def test_impossible_annotation_is_refused_by_number(tmp_path, annotation, words):
    images(tmp_path, "a.png")
    coco(tmp_path / "annotations.json", ["a.png"], [annotation])
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(tmp_path)
    assert str(tmp_path / "annotations.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', "is not valid JSON"),
        ("[]", "has no list 'images'"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [3], "annotations": [], "categories": []}', "an entry of 'images' is not an object"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 0}]}', "lists no images"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 0}]}', "image 1 has no file_name"),
        (
            '{"images": [{"id": "x", "file_name": "a"}], "annotations": [], "categories": [{"id": 0}]}',
            "image id 'x' is no number",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": [], '
            '"categories": [{"id": 0}]}',
            "1 image id used twice: 1",
        ),
    ],
)
def test_damaged_or_incomplete_json_is_refused_by_name(tmp_path, text, words):
    images(tmp_path, "a.png")
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path)


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(
        ["id", "file_name", "height", "width", "bbox", "area", "iscrowd", "image_id", "category_id", "name"]
    ),
    value=JUNK,
)
def test_json_with_anything_in_any_field_opens_or_is_refused_and_never_crashes(tmp_path, table, key, value):
    images(tmp_path, "a.png")
    coco(tmp_path / "annotations.json", ["a.png"], [BOX])
    raw = json.loads((tmp_path / "annotations.json").read_text())
    raw[table][0][key] = value
    (tmp_path / "annotations.json").write_text(json.dumps(raw))
    try:
        data = open_dataset(tmp_path, spec=detector(["cat", "dog"]))
    except DataError:
        return
    assert data.kind == "coco"
    assert len(data.val) == 1


def test_image_of_another_size_than_the_json_says_is_refused_when_read(tmp_path):
    images(tmp_path, "a.png")
    Image.new("RGB", (8, 10)).save(tmp_path / "a.png")
    coco(tmp_path / "annotations.json", ["a.png"], [BOX])
    with pytest.raises(DataError, match=r"a\.png is 8×10(.|\n)*10×8, as the JSON says"):
        open_dataset(tmp_path).val.samples[0].read()


def test_several_coco_files_without_split_names_are_refused(tmp_path):
    images(tmp_path, "a.png")
    coco(tmp_path / "one.json", ["a.png"])
    coco(tmp_path / "two.json", ["a.png"])
    with pytest.raises(DataError, match=r"several COCO files: one\.json, two\.json"):
        open_dataset(tmp_path)


def test_boxes_are_no_labels_for_a_classifier(tmp_path):
    images(tmp_path, *[f"{index}.png" for index in range(5)])
    coco(tmp_path / "annotations.json", ["0.png"], [BOX])
    data = open_dataset(tmp_path, spec=classifier(["cat", "dog"]))
    assert data.kind == "images"
    assert "annotations.json is not used: the model is a classifier" in data.notes


# --- class folders


def test_numbered_folders_are_ordered_as_numbers(tmp_path):
    images(tmp_path, *[f"{index}_c/{index}.png" for index in range(12)])
    data = open_dataset(tmp_path, holdout=0)
    assert data.kind == "classes"
    assert [(sample.label, sample.path.stem) for sample in data.val.samples] == [
        (i, str(i)) for i in range(12)
    ]


def test_named_folders_are_ordered_by_name_without_a_model(tmp_path):
    images(tmp_path, "dog/1.png", "cat/2.png", "cat/deep/3.png")
    data = open_dataset(tmp_path, holdout=0)
    assert data.labels == ("cat", "dog")
    assert [sample.label for sample in data.val.samples] == [0, 0, 1]


def test_folders_are_matched_to_the_model_by_name_even_when_some_are_absent(tmp_path):
    images(tmp_path, "Tench/1.png", "gold fish/2.png")
    data = open_dataset(
        tmp_path, spec=classifier(["hen", "goldfish, Carassius auratus", "tench, Tinca tinca"]), holdout=0
    )
    assert {sample.path.parent.name: sample.label for sample in data.val.samples} == {
        "Tench": 2,
        "gold fish": 1,
    }


def test_folders_named_otherwise_are_matched_by_order_and_the_note_says_so(tmp_path):
    images(tmp_path, "n02/1.png", "n01/2.png")
    data = open_dataset(tmp_path, spec=classifier(["hen", "tench"]), holdout=0)
    assert data.labels == ("hen", "tench")
    assert "matched by sorted order, as no folder is named like one: n01 is hen" in data.notes[0]


def test_number_of_class_folders_other_than_the_models_is_refused(tmp_path):
    images(tmp_path, "ape/1.png", "bee/2.png", "cow/3.png")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, spec=classifier(["hen", "tench"]))
    assert "has 3 class folders, 3 of them unknown to the model: ape, bee, cow" in str(caught.value)
    assert "the model's 2 classes: hen, tench" in str(caught.value)


def test_half_matching_folder_names_are_refused_rather_than_guessed(tmp_path):
    images(tmp_path, "hen/1.png", "tensch/2.png")
    with pytest.raises(DataError, match="1 of them unknown to the model: tensch"):
        open_dataset(tmp_path, spec=classifier(["tench", "hen"]))


def test_class_folders_are_bare_images_for_a_detector(tmp_path):
    images(tmp_path, *[f"{kind}/{index}.png" for kind in ("cat", "dog") for index in range(3)])
    data = open_dataset(tmp_path, spec=detector(["cat", "dog"]))
    assert data.kind == "images"
    assert not data.val.labelled


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
        (tmp_path / "text", "1 files: .csv"),
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


def test_names_match_without_case_and_punctuation_and_never_by_a_repeated_label():
    assert match_names(["T-shirt-top", "ankle_boot", "shoe"], ["Ankle boot", "T-shirt/top"]) == [1, 0, None]
    assert match_names(["N/A"], ["N/A", "cat", "N/A"]) == [None]
    assert match_names(["crane"], ["crane, bird", "crane, machine"]) == [None]
