import numpy as np

from vitesse.data.results import Classification, Detections
from vitesse.video.drawing import drawn

BOX = Detections(
    np.array([[20, 30, 120, 150]], np.float32), np.array([0.9], np.float32), np.array([0]), ("cat",)
)


def test_boxes_are_drawn_as_on_a_single_picture_and_the_frame_is_not_changed() -> None:
    pixels = np.full((240, 320, 3), 90, np.uint8)
    picture = drawn(pixels, BOX)
    assert np.array_equal(picture, np.asarray(BOX.draw(pixels, threshold=0.5)))
    assert not np.array_equal(picture, pixels) and (pixels == 90).all()


def test_boxes_below_the_threshold_are_not_drawn() -> None:
    pixels = np.full((240, 320, 3), 90, np.uint8)
    assert np.array_equal(drawn(pixels, BOX, threshold=0.95), pixels)


def test_a_class_is_written_on_the_frame() -> None:
    result = Classification(np.array([1]), np.array([0.8], np.float32), ("dog",))
    pixels = np.full((240, 320, 3), 90, np.uint8)
    assert np.array_equal(drawn(pixels, result), np.asarray(result.draw(pixels)))


def test_odd_sides_are_made_even_by_doubling_the_last_line() -> None:
    pixels = np.arange(241 * 321 * 3, dtype=np.uint32).astype(np.uint8).reshape(241, 321, 3)
    picture = drawn(pixels, BOX, threshold=0.95)
    assert picture.shape == (242, 322, 3)
    assert np.array_equal(picture[:241, :321], pixels)
    assert np.array_equal(picture[241], picture[240]) and np.array_equal(picture[:, 321], picture[:, 320])
