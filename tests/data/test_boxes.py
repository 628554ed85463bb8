import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitesse.data.boxes import cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh
from vitesse.data.preprocess import place
from vitesse.errors import DataError
from vitesse.spec import Preprocessing, Resize

BOXES = arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(0, 1000, width=32))
SIDES = st.integers(1, 2000)


def test_formats_mean_what_they_say():
    assert cxcywh_to_xyxy(np.array([[10.0, 20, 4, 6]])).tolist() == [[8, 17, 12, 23]]
    assert xyxy_to_cxcywh(np.array([[8.0, 17, 12, 23]])).tolist() == [[10, 20, 4, 6]]
    assert xywh_to_xyxy(np.array([[8.0, 17, 4, 6]])).tolist() == [[8, 17, 12, 23]]
    assert xyxy_to_xywh(np.array([[8.0, 17, 12, 23]])).tolist() == [[8, 17, 4, 6]]


@given(BOXES)
def test_conversions_are_undone_by_their_inverse_and_keep_float32(boxes):
    for there, back in ((cxcywh_to_xyxy, xyxy_to_cxcywh), (xywh_to_xyxy, xyxy_to_xywh)):
        again = back(there(boxes))
        assert again.dtype == np.float32
        np.testing.assert_allclose(again, boxes, atol=2e-3)


@given(
    boxes=BOXES,
    size=st.tuples(SIDES, SIDES),
    target=st.tuples(SIDES, SIDES),
    mode=st.sampled_from([Resize.STRETCH, Resize.LETTERBOX, Resize.CROP, Resize.SQUASH]),
)
def test_boxes_come_back_from_the_tensor_where_they_were(boxes, size, target, mode):
    rules = Preprocessing(target, resize=mode, crop_ratio=0.875)
    try:
        placed = place(size, rules)
    except DataError:
        assert mode is Resize.CROP
        assert max(size) / min(size) > 20
        return
    np.testing.assert_allclose(placed.to_original(placed.to_input(boxes)), boxes, rtol=1e-3, atol=0.1)


@given(size=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES))
def test_letterbox_fits_touches_one_side_and_keeps_the_aspect_to_a_pixel(size, target):
    placed = place(size, Preprocessing(target, resize=Resize.LETTERBOX))
    height, width = placed.resized
    assert height <= target[0]
    assert width <= target[1]
    assert height == target[0] or width == target[1]
    assert (placed.left, placed.top) == (0, 0)
    ratio = min(target[0] / size[0], target[1] / size[1])
    assert abs(height - max(1, size[0] * ratio)) <= 0.5
    assert abs(width - max(1, size[1] * ratio)) <= 0.5


@given(
    size=st.tuples(st.integers(40, 800), st.integers(40, 800)),
    target=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    ratio=st.floats(0.5, 1),
)
def test_crop_lies_inside_the_resized_image_and_in_its_middle(size, target, ratio):
    placed = place(size, Preprocessing(target, resize=Resize.CROP, crop_ratio=ratio))
    for resized, wanted, offset in zip(placed.resized, target, (placed.top, placed.left), strict=True):
        assert 0 <= -offset <= resized - wanted
        assert abs((resized - wanted) / 2 + offset) <= 0.5


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 500)])
def test_crop_of_a_square_scales_the_shortest_side_as_imagenet_does(size):
    placed = place(size, Preprocessing((224, 224), resize=Resize.CROP, crop_ratio=0.875))
    assert min(placed.resized) == 256
    assert max(placed.resized) == int(256 * max(size) / min(size))


def test_squash_takes_the_centre_of_an_image_stretched_to_the_covering_square():
    placed = place((480, 640), Preprocessing((224, 224), resize=Resize.SQUASH, crop_ratio=0.875))
    assert (placed.resized, placed.left, placed.top) == ((256, 256), -16, -16)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((480, 640), (800, 1066)),  # the usual photo of COCO
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((300, 1000), (400, 1333)),  # the longest side decides
        ((1000, 300), (1333, 400)),
        ((500, 500), (800, 800)),
    ],
)
def test_shortest_side_resizing_gives_the_sizes_of_detrs_evaluation(size, resized):
    assert place(size, Preprocessing((800, 1333), resize=Resize.SHORTEST)).resized == resized
