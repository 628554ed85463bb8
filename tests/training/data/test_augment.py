"""Pictures and boxes move together, by numbers that the CPU draws."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

import torch

from training.data.training_folders import classifier, detector
from vitesse.errors import UsageError
from vitesse.spec import Task
from vitesse.training.data.augment import Augmentation, Augmenter, augmentation, draw, moved, usual
from vitesse.training.data.targets import FlatObjects

STILL = Augmentation(shift=0, zoom=1, flip=False, brightness=0, contrast=0)
SIZE = (64, 96)


def still(images: int, **changed):
    """A draw that changes nothing but what is given."""
    return dataclasses.replace(draw(STILL, images, (0,)), **changed)


def row(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def one_object(box) -> FlatObjects:
    return FlatObjects(np.array([0, 1]), np.array([3]), np.array([box], np.float32))


def painted(box_xyxy) -> torch.Tensor:
    """A black picture with one white rectangle, in pixels."""
    left, top, right, bottom = box_xyxy
    pixels = torch.zeros((1, 3, *SIZE), dtype=torch.uint8)
    pixels[..., top:bottom, left:right] = 255
    return pixels


def plain_pixels(pixels, drawn):
    """The augmented picture with values 0..1."""
    rules = dataclasses.replace(classifier(SIZE).preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Augmenter(rules).augmented(pixels, drawn)


def tight_box(image) -> np.ndarray:
    """The box, cxcywh in 0..1, of what is brighter than half."""
    height, width = image.shape[1:]
    bright = image[0] > 0.5
    rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    corners = np.array([left / width, top / height, right / width, bottom / height])
    return np.concatenate(((corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"mirror": row(-1)},
        {"shift": row(0.125, -0.0625)[None]},
        {"zoom": row(1.5)},
        {"zoom": row(0.75)},
        {"mirror": row(-1), "zoom": row(1.25), "shift": row(-0.25, 0.125)[None]},
        {"shift": row(0.375, 0)[None]},
    ],
    ids=["still", "mirrored", "shifted", "nearer", "farther", "all", "cut off"],
)
def test_a_box_follows_its_rectangle(changed):
    drawn = still(1, **changed)
    picture = plain_pixels(painted((48, 16, 80, 48)), drawn)[0]
    found = moved(one_object((64 / 96, 0.5, 32 / 96, 0.5)), drawn, visible=0.1)
    assert np.abs(found.boxes[0] - tight_box(picture)).max() <= 1.01 / 64
    assert found.labels.tolist() == [3]


def test_the_comparison_would_see_a_box_that_does_not_follow():
    drawn = still(1, mirror=row(-1))
    picture = plain_pixels(painted((48, 16, 80, 48)), drawn)[0]
    stays = moved(one_object((64 / 96, 0.5, 32 / 96, 0.5)), still(1), visible=0.1)
    assert np.abs(stays.boxes[0] - tight_box(picture)).max() > 0.3


def test_what_is_less_visible_than_the_stated_share_is_no_object_any_more():
    drawn = still(1, shift=row(0.5, 0)[None])
    objects = one_object((0.4, 0.5, 0.4, 0.2))  # 0.2..0.6 becomes 0.7..1.1: three quarters are left
    assert moved(objects, drawn, visible=0.74).boxes == pytest.approx(np.array([[0.85, 0.5, 0.3, 0.2]]))
    gone = moved(objects, drawn, visible=0.76)
    assert (gone.starts.tolist(), gone.labels.tolist(), gone.boxes.shape) == ([0, 0], [], (0, 4))


def test_each_image_of_a_batch_has_its_own_objects_and_its_own_draw():
    boxes = np.array([[0.25, 0.5, 0.1, 0.1], [0.3, 0.5, 0.1, 0.1], [0.75, 0.5, 0.1, 0.1]], np.float32)
    objects = FlatObjects(np.array([0, 2, 2, 3]), np.array([0, 1, 2]), boxes)
    drawn = still(3, mirror=row(-1, 1, 1), shift=np.array([[0, 0], [0, 0], [0.1, 0]], np.float32))
    found = moved(objects, drawn, visible=0.5)
    assert found.starts.tolist() == [0, 2, 2, 3]
    assert found.boxes[:, 0] == pytest.approx([0.75, 0.7, 0.85])
    first, second, third = moved(objects, drawn, 0.5).tensors(torch.device("cpu"))
    assert [len(one.labels) for one in (first, second, third)] == [2, 0, 1]
    assert second.boxes.shape == (0, 4)
    assert third.boxes[0, 0].item() == pytest.approx(0.85)


def test_a_quarter_turn_of_an_oblong_picture_is_one_in_pixels():
    pixels = painted((40, 8, 56, 24))  # a square of 16, 24 px above the centre
    turned = plain_pixels(pixels, still(1, angle=row(np.pi / 2)))[0]
    # clockwise: what was above the centre (48, 32) is now as far to its right
    assert tight_box(turned) * [96, 64, 96, 64] == pytest.approx([48 + 16, 32, 16, 16], abs=1)


def test_boxes_do_not_follow_a_turn_and_that_is_no_silent_error():
    with pytest.raises(ValueError, match="cannot follow"):
        moved(one_object((0.5, 0.5, 0.2, 0.2)), still(1, angle=row(0.1)), 0.5)


def test_light_is_a_factor_a_pivot_at_middle_gray_and_stays_in_range():
    pixels = torch.tensor([0, 100, 240], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, *SIZE)
    lit = plain_pixels(pixels, still(1, gain=row(1.2), offset=row(-10.0)))[0, :, 5, 5] * 255
    assert lit.tolist() == pytest.approx([0, 110, 255], abs=1e-3)


def test_an_erased_rectangle_has_one_colour_and_the_rest_is_untouched():
    pixels = painted((0, 0, 96, 64))
    drawn = still(1, erased=row(0.25, 0.5, 0.5, 1.0)[None], colour=row(51, 102, 204)[None])
    picture = plain_pixels(pixels, drawn)[0]
    inside = picture[:, 32:64, 24:48]
    assert (inside * 255).amin((1, 2)).tolist() == pytest.approx([51, 102, 204], abs=1e-3)
    assert (inside * 255).amax((1, 2)).tolist() == pytest.approx([51, 102, 204], abs=1e-3)
    assert int((picture[0] != 1).sum()) == 32 * 24


def test_a_draw_is_a_function_of_its_seed_and_keeps_to_its_ranges():
    how = usual(Task.CLASSIFICATION)
    one, same, other = (draw(how, 500, seed) for seed in ((1, 2, 3), (1, 2, 3), (1, 2, 4)))
    for field in dataclasses.fields(one):
        assert np.array_equal(getattr(one, field.name), getattr(same, field.name))
        assert getattr(one, field.name).dtype == np.float32
    assert not np.array_equal(one.zoom, other.zoom)
    assert 1 / how.zoom <= one.zoom.min() < 0.9 < 1.1 < one.zoom.max() <= how.zoom * 1.0001
    assert how.shift * 0.9 < np.abs(one.shift).max() <= how.shift
    assert 0.9 * how.rotation < np.degrees(np.abs(one.angle)).max() <= how.rotation * 1.0001
    assert 0.4 < (one.mirror < 0).mean() < 0.6
    area = (one.erased[:, 2:] - one.erased[:, :2]).prod(1)
    assert 0.15 < (area > 0).mean() < 0.35
    assert area.max() <= 0.2001
    assert one.erased.min() >= 0
    assert one.erased.max() <= 1


def test_what_is_usual_for_boxes_turns_and_erases_nothing_and_mirroring_can_be_left_out():
    drawn = draw(usual(Task.DETECTION), 200, (0,))
    assert not drawn.angle.any()
    assert not drawn.erased.any()
    assert (draw(dataclasses.replace(usual(Task.DETECTION), flip=False), 200, (0,)).mirror == 1).all()


def test_in_place_nothing_is_moved_zoomed_or_turned_and_the_rest_is_as_usual():
    for task in Task:
        drawn, before = (draw(augmentation(name, task), 200, (0,)) for name in ("in-place", "usual"))
        assert (drawn.zoom == 1).all()
        assert not drawn.shift.any()
        assert not drawn.angle.any()
        for part in ("mirror", "gain", "offset", "erased"):
            np.testing.assert_array_equal(getattr(drawn, part), getattr(before, part))
    assert augmentation("none", Task.DETECTION) is None
    with pytest.raises(UsageError, match=r"'mild'.*\n.*one of usual, in-place, none"):
        augmentation("mild", Task.DETECTION)


def test_channels_are_normalised_in_the_order_the_model_wants_them_in():
    pixels = torch.full((1, 3, 2, 2), 102, dtype=torch.uint8)
    for color, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1))):
        rules = detector(color=color).preprocessing
        expected = [(0.4 - mean) / std for mean, std in zip(rules.mean, rules.std, strict=True)][order]
        assert Augmenter(rules).normalised(pixels)[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_pictures():
    pixels = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    drawn, augmenter = draw(usual(Task.CLASSIFICATION), 4, (0,)), Augmenter(detector().preprocessing)
    found = augmenter.augmented(pixels.cuda(), drawn).cpu()
    torch.testing.assert_close(found, augmenter.augmented(pixels, drawn), atol=1e-3, rtol=0)
