"""Buckets: which are chosen, how images lie in them, and that results come back in pixels of the original."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fashion import DETR, IMAGES, artifact_of
from vitesse.backends.protocol import LoadOptions
from vitesse.data.buckets import bucket_of, choose_buckets, fit, waste, with_buckets
from vitesse.data.images import decode_image
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds, group_by_bucket, place, prepare, tensor_size
from vitesse.data.scaling import wanted_size
from vitesse.errors import DataError, SpecError, UsageError
from vitesse.measure import Candidate, opened
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task, spec_from_mapping

COCO = Preprocessing((800, 1333), Resize.SHORTEST)
NATIVE = Preprocessing((64, 64), Resize.NONE)
SIDES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
BUCKETS = ((480, 640), (640, 480), (800, 800))
RULES = [
    replace(COCO, buckets=BUCKETS),
    Preprocessing((640, 640), Resize.LETTERBOX, buckets=BUCKETS),
    Preprocessing((512, 640), Resize.STRETCH, buckets=BUCKETS),
    replace(NATIVE, buckets=BUCKETS),
]


def spec_with(rules: Preprocessing, **changes: Any) -> ModelSpec:
    outputs = {"logits": "logits", "boxes": "boxes"}
    return ModelSpec(Task.DETECTION, Decode.DETR_SOFTMAX, "images", outputs, rules, **changes)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), np.uint8)


def least_area(sizes: list[tuple[int, int]], count: int, multiple: int) -> int:
    """Area of the tensors with the best buckets, by trying every set of every bucket of the grid."""
    heights, widths = ({-(-size[side] // multiple) * multiple for size in sizes} for side in (0, 1))
    grid = [(height, width) for height in heights for width in widths]
    areas = np.array(
        [[h * w if h >= size[0] and w >= size[1] else 10**12 for h, w in grid] for size in sizes]
    )
    return min(
        int(areas[:, list(some)].min(axis=1).sum())
        for some in combinations(range(len(grid)), min(count, len(grid)))
    )


def area_of(sizes: list[tuple[int, int]], rules: Preprocessing, buckets: Any) -> int:
    wanted = [wanted_size(size, rules) for size in sizes]
    return sum(np.prod(buckets[bucket_of(size, buckets)]) for size in wanted)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_no_other_buckets_pad_less(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(height), int(width)) for height, width in rng.integers(20, 190, (14, 2))]
    buckets = choose_buckets(sizes, NATIVE, count)
    assert area_of(sizes, NATIVE, buckets) == least_area(sizes, count, 32)
    assert all(side % 32 == 0 for bucket in buckets for side in bucket)
    assert fit(sizes, NATIVE, buckets).shrunk == 0


def test_two_kinds_of_photographs_get_a_bucket_each() -> None:
    # 800/480 · 640 = 1066.7, rounded down as DETR does, and up to 1088; upright the other way
    sizes = [(480, 640)] * 7 + [(640, 480)] * 3
    assert choose_buckets(sizes, COCO, 2) == ((800, 1088), (1088, 800))
    assert choose_buckets(sizes, COCO, 5) == ((800, 1088), (1088, 800)), "no third kind of image"
    assert choose_buckets(sizes, COCO, 1) == ((1088, 1088),)
    # one bucket: 10 · 1088² pixels of tensor for 10 · 800 · 1066 of image
    assert waste(sizes, COCO, ((1088, 1088),)) == pytest.approx(1 - 800 * 1066 / 1088**2)


def test_more_buckets_never_waste_more_and_multiples_are_kept() -> None:
    rng = np.random.default_rng(5)
    sizes = [(int(height), int(width)) for height, width in rng.integers(200, 900, (300, 2))]
    for rules in (COCO, replace(NATIVE, resize=Resize.STRETCH, size=(320, 320))):
        shares = [
            waste(sizes, rules, choose_buckets(sizes, rules, count, multiple=16)) for count in (1, 2, 4, 8)
        ]
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] < shares[0] / 2


def test_thousands_of_images_of_any_size_are_all_held() -> None:
    sizes = [
        (int(height), int(width)) for height, width in np.random.default_rng(1).integers(30, 2500, (5000, 2))
    ]
    buckets = choose_buckets(sizes, NATIVE, 3)
    assert len(buckets) == 3
    found = fit(sizes, NATIVE, buckets)
    assert (found.shrunk, found.scale, sum(found.images)) == (0, 1.0, 5000)
    # three quarters of the square that holds all would be padding
    assert found.padding < 0.6 < waste(sizes, NATIVE, choose_buckets(sizes, NATIVE, 1))


def test_an_image_that_no_bucket_holds_is_scaled_down_and_counted() -> None:
    # 1000×500 in 480×640: 480/1000; in 640×480: 0.64; in 800×800: 0.8, which keeps most
    found = fit([(1000, 500), (400, 600)], RULES[3], BUCKETS)
    assert (found.shrunk, found.scale, found.images) == (1, 0.8, (1, 0, 1))
    assert place((1000, 500), RULES[3]).resized == (800, 400)
    assert found.padding == pytest.approx(1 - (800 * 400 + 400 * 600) / (800 * 800 + 480 * 640))


def test_the_bucket_that_keeps_most_pixels_wins_then_the_smallest() -> None:
    assert bucket_of((480, 640), BUCKETS) == 0
    assert bucket_of((481, 640), BUCKETS) == 2  # one row too many for the first: it would be scaled down
    assert bucket_of((10, 10), BUCKETS) == 0, "equally large: the first"
    assert bucket_of((10, 10), ((64, 64), (32, 64))) == 1


def test_images_keep_their_aspect_and_the_number_of_pixels_of_a_stretch() -> None:
    # 512·640 pixels at aspect 1:2 are 404.8 × 809.5; no bucket is so wide: 800×800 leaves 800 of 810
    assert wanted_size((300, 600), RULES[2]) == (405, 810)
    assert place((300, 600), RULES[2]).resized == (400, 800)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.resize.value)
def test_the_tensor_has_the_buckets_size_and_zeros_right_and_below(rules: Preprocessing) -> None:
    image = picture(300, 420)
    rows, columns = place((300, 420), rules).resized
    for layout in ("NCHW", "NHWC"):
        spec = spec_with(replace(rules, layout=layout))
        tensor = prepare(image, spec)
        tensor = tensor if layout == "NCHW" else tensor.transpose(2, 0, 1)
        assert tensor.shape[1:] in BUCKETS
        assert not tensor[:, rows:].any() and not tensor[:, :, columns:].any()
        resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
        assert np.array_equal(tensor[:, :rows, :columns], (resized / np.float32(255)).transpose(2, 0, 1))


def test_images_of_different_buckets_are_refused_in_one_batch_and_grouped_for_several() -> None:
    spec = spec_with(RULES[1])
    images = [picture(480, 640), picture(640, 480), picture(240, 320), picture(600, 600)]
    with pytest.raises(DataError) as caught:
        feeds(images, spec, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    assert str(caught.value).startswith(
        "images of different buckets in one batch: a.jpg belongs to 480×640 and b.jpg belongs to 640×480"
    )
    assert caught.value.fix == "make a batch of each group that `group_by_bucket` gives"
    groups = group_by_bucket(images, spec)
    assert groups == {(480, 640): [0, 2], (640, 480): [1], (800, 800): [3]}
    for size, indices in groups.items():
        batch = feeds([images[index] for index in indices], spec)["images"]
        assert batch.shape == (len(indices), 3, *size)


def test_a_graph_that_masks_padding_hears_what_the_image_covers() -> None:
    spec = spec_with(RULES[1], valid_size_input="valid_sizes")
    made = feeds([picture(480, 640), picture(120, 320)], spec)
    assert made["valid_sizes"].tolist() == [[480, 640], [240, 640]]


def test_a_graph_told_the_original_size_is_told_the_buckets_for_the_boxes_are_padded() -> None:
    spec = spec_with(RULES[2], size_input="sizes", size_order="hw")
    assert feeds([picture(300, 400)], spec)["sizes"].tolist() == [[800, 800]]
    without = with_buckets(spec, ())
    assert feeds([picture(300, 400)], without)["sizes"].tolist() == [[300, 400]]


@settings(max_examples=300, deadline=None)
@given(size=SIDES, rules=st.sampled_from(RULES), corner=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_boxes_come_back_to_the_original_within_half_a_pixel(
    size: tuple[int, int], rules: Preprocessing, corner: tuple[float, float]
) -> None:
    placed = place(size, rules)
    bucket = tensor_size([placed], rules)
    assert bucket in BUCKETS
    assert placed.resized[0] <= bucket[0] and placed.resized[1] <= bucket[1]
    height, width = size
    box = np.array(
        [[0, 0, width, height], [corner[0] * width, corner[1] * height, width, height]], np.float32
    )
    inside = placed.to_input(box)
    assert inside[:, 2].max() <= bucket[1] + 0.01 and inside[:, 3].max() <= bucket[0] + 0.01
    assert np.abs(placed.to_original(inside) - box).max() < 0.5
    # decoding takes boxes relative to the tensor, or to the image where the graph masks the rest
    for valid, unit in ((None, bucket), ("valid_sizes", placed.resized)):
        spec = spec_with(rules, valid_size_input=valid)
        scaled = inside / np.array([unit[1], unit[0], unit[1], unit[0]], np.float32)
        centres = np.concatenate(((scaled[:, :2] + scaled[:, 2:]) / 2, scaled[:, 2:] - scaled[:, :2]), axis=1)
        logits = np.array([[[9, 0, 0], [0, 8, 0]]], np.float32)
        (found,) = decode({"logits": logits, "boxes": centres[None]}, spec, [size])
        assert np.abs(found.boxes_xyxy - box).max() < 0.5


@settings(max_examples=200, deadline=None)
@given(size=SIDES, rules=st.sampled_from(RULES))
def test_aspect_is_kept_up_to_rounding_and_nothing_is_enlarged_over_its_rule(
    size: tuple[int, int], rules: Preprocessing
) -> None:
    wanted, resized = wanted_size(size, rules), place(size, rules).resized
    assert resized[0] <= wanted[0] and resized[1] <= wanted[1]
    scale = [after / before for after, before in zip(resized, size, strict=True)]
    slack = 1.5 / min(size) if min(resized) > 1 else np.inf  # a pixel of rounding, and DETR's rounding down
    assert abs(scale[0] - scale[1]) <= slack


def test_a_detector_finds_the_same_boxes_in_a_padded_bucket() -> None:
    """A scene of 256×256 at the left top of 256×256 is the scene; in a bucket of another aspect it is half of it."""
    artifact = artifact_of(DETR)
    scene = decode_image(IMAGES[DETR][0])
    plain = artifact.spec
    same = with_buckets(plain, ((256, 256), (512, 256)))
    assert np.array_equal(feeds([scene], same)["images"], feeds([scene], plain)["images"])
    tall = np.concatenate(
        [scene, scene], axis=0
    )  # 512×256: into a bucket of 256×256 it goes at half its size
    halved = replace(plain, preprocessing=replace(plain.preprocessing, buckets=((256, 256),)))
    small = np.asarray(Image.fromarray(tall).resize((128, 256), Image.Resampling.BILINEAR))
    by_hand = np.zeros((256, 256, 3), np.float32)
    mean, std = np.array(plain.preprocessing.mean, np.float32), np.array(plain.preprocessing.std, np.float32)
    by_hand[:, :128] = (small / np.float32(255) - mean) / std
    with opened(Candidate(artifact, LoadOptions())) as session:
        ours = decode(session.run(feeds([tall], halved)).outputs, halved, [(512, 256)])[0]
        found = decode(
            session.run({"images": by_hand.transpose(2, 0, 1)[None]}).outputs, plain, [(256, 256)]
        )[0]
    np.testing.assert_allclose(ours.scores, found.scores, atol=1e-4)
    np.testing.assert_allclose(ours.boxes_xyxy, found.boxes_xyxy * 2, atol=0.1)  # twice as high and as wide


def test_buckets_survive_the_journey_through_json_and_old_specs_still_load() -> None:
    spec = spec_with(RULES[0])
    again = spec_from_mapping(json.loads(spec.to_json()))
    assert again == spec
    assert again.preprocessing.buckets == BUCKETS
    assert hash(again.preprocessing) == hash(spec.preprocessing)
    old = json.loads(with_buckets(spec, ()).to_json())
    assert "buckets" not in old["preprocessing"], "a spec without buckets stays what it was, to the byte"
    assert spec_from_mapping(old).preprocessing.buckets == ()


@pytest.mark.parametrize(
    ("buckets", "resize", "words"),
    [
        ([[0, 32]], "none", "buckets = [[0, 32]]"),
        ([[32, 32], [32, 32]], "none", "buckets = [[32, 32], [32, 32]]"),
        ([[32, 32]], "crop", "buckets beside resize = 'crop'"),
        ([[32, 32, 3]], "none", "the spec is incomplete or wrong"),
    ],
)
def test_buckets_that_cannot_be_are_refused(buckets: Any, resize: str, words: str) -> None:
    raw = json.loads(spec_with(NATIVE).to_json())
    raw["preprocessing"] |= {"buckets": buckets, "resize": resize}
    with pytest.raises(SpecError) as caught:
        spec_from_mapping(raw)
    assert caught.value.what.startswith(words)


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(DataError, match="no images to choose buckets for"):
        choose_buckets([], COCO, 2)
    with pytest.raises(UsageError, match="0 buckets with sides in multiples of 32"):
        choose_buckets([(4, 4)], COCO, 0)
    with pytest.raises(SpecError, match="resize = 'crop' cuts every image to 64×64"):
        choose_buckets([(4, 4)], replace(NATIVE, resize=Resize.CROP), 2)
    with pytest.raises(DataError, match="1 images and 0 buckets"):
        fit([(4, 4)], COCO, ())
