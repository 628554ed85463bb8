"""COCO data sets: where the JSON and its images lie, which category is which class, and what is refused."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.image_folders import BOX, classifier, coco, detector, files, images
from vitesse.data.dataset import open_dataset
from vitesse.errors import DataError


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
