"""docs/resolution.md holds what benchmarks/resolution.py measured."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmark_scripts import FOLDER, benchmark
from shared_data import shared
from vitesse.data.buckets import choose_buckets, waste
from vitesse.spec import Preprocessing, Resize

PAGE = FOLDER.parent / "docs" / "resolution.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("resolution")


def test_the_page_is_made_from_the_committed_results(script: ModuleType) -> None:
    page = PAGE.read_text()
    assert script.page_with_tables(page) == page


def test_another_figure_in_the_results_would_be_noticed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = script.results()
    found["accuracy"][0]["ap"] += 0.01
    monkeypatch.setattr(script, "results", lambda: found)
    page = PAGE.read_text()
    assert script.page_with_tables(page) != page


def test_the_photographs_still_waste_what_the_page_says(script: ModuleType) -> None:
    shared("coco_ccby")
    measured = {row["rule"]: row for row in script.photographs()}
    for row in script.results()["waste"]:
        assert measured[row["rule"]]["padding"] == pytest.approx(row["padding"])
        assert measured[row["rule"]]["batches"] == pytest.approx(row["batches"])


def test_batches_of_one_kind_of_image_need_no_padding_and_mixed_ones_do(script: ModuleType) -> None:
    assert script.padding_of_batches([(480, 640)] * 20) == 0
    # 7 landscape and 1 upright of 8 images in a batch, in whatever order: a tensor of 640×640 each
    mixed = [(480, 640)] * 7 + [(640, 480)]
    assert script.padding_of_batches(mixed) == pytest.approx(1 - 480 / 640)


def test_cut_scenes_keep_whole_objects_and_stretched_ones_move_them(
    script: ModuleType, tmp_path: Path
) -> None:
    shared("detr_fashion")
    raw = json.loads((script.DATA / "detr_fashion" / "instances_val.json").read_text())
    before = {entry["id"]: entry for entry in raw["annotations"]}
    for how, all_kept in (("cut", False), ("stretched", True)):
        made = json.loads((script.scenes(tmp_path / how, how) / "annotations.json").read_text())
        sizes = {image["id"]: (image["width"], image["height"]) for image in made["images"]}
        assert len(set(sizes.values())) > 10
        assert (len(made["annotations"]) == len(before)) == all_kept
        for entry in made["annotations"][:200]:
            width, height = sizes[entry["image_id"]]
            box, old = np.array(entry["bbox"]), np.array(before[entry["id"]]["bbox"])
            factor = np.array([width, height] * 2) / 256 if all_kept else 1
            np.testing.assert_allclose(box, old * factor)
            assert box[0] + box[2] <= width + 1e-3
            assert box[1] + box[3] <= height + 1e-3


def test_buckets_waste_less_than_padding_batches_from_two_on(script: ModuleType) -> None:
    """What the page claims of these photographs."""
    for row in script.results()["waste"]:
        assert row["padding"]["2"] < row["batches"] < row["padding"]["1"]
        sizes, rules = [(480, 640), (640, 480)], script.RULES[row["rule"]]
        assert waste(sizes, rules, choose_buckets(sizes, rules, 2)) < 0.1


def test_the_example_gives_what_its_comment_says() -> None:
    """The shortest side becomes 800: 480×640 is 800×1066, 427×640 is 800×1199, each rounded up to multiples of 32."""
    rules = Preprocessing((800, 1333), Resize.SHORTEST)
    assert "# ((1088, 800), (800, 1216)) at shortest side 800" in PAGE.read_text()
    assert choose_buckets([(480, 640), (640, 480), (427, 640)], rules, 2) == ((1088, 800), (800, 1216))
