"""Folders that are classes: their order, and which class of the model each is."""

import pytest

from data.image_folders import classifier, detector, images
from vitesse.data.class_names import match_names
from vitesse.data.dataset import open_dataset
from vitesse.errors import DataError


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


def test_names_match_without_case_and_punctuation_and_never_by_a_repeated_label():
    assert match_names(["T-shirt-top", "ankle_boot", "shoe"], ["Ankle boot", "T-shirt/top"]) == [1, 0, None]
    assert match_names(["N/A"], ["N/A", "cat", "N/A"]) == [None]
    assert match_names(["crane"], ["crane, bird", "crane, machine"]) == [None]
