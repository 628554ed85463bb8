import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitesse.data.draw import PALETTE, class_color, draw_caption, draw_detections
from vitesse.data.results import Classification, Detections

GRAY = (120, 120, 120)


def plain(width, height):
    return Image.new("RGB", (width, height), GRAY)


def one_box(box, size=(256, 256), name="cat", label=0):
    return draw_detections(
        plain(*size), np.array([box], np.float32), np.array([0.9]), np.array([label]), [name]
    )


def touched(picture):
    """Rows and columns of the drawn pixels."""
    return np.nonzero((np.asarray(picture) != GRAY).any(axis=2))


def test_box_is_drawn_in_its_classes_colour_where_it_lies():
    picture = np.asarray(one_box((60, 80, 160, 200), label=2))
    assert tuple(picture[140, 60]) == class_color(2)
    assert tuple(picture[200, 100]) == class_color(2)
    assert tuple(picture[140, 110]) == GRAY


def test_line_and_letters_grow_with_the_picture():
    heights = []
    for side in (256, 4000):
        rows, _ = touched(one_box(np.array((0.3, 0.5, 0.7, 0.9)) * side, (side, side)))
        above = rows[rows < 0.5 * side - side / 100]
        heights.append(np.ptp(above))
    assert heights[0] >= 10
    assert 8 * heights[0] > heights[1] > 4 * heights[0]


@pytest.mark.parametrize(
    "box",
    [(200, 0, 256, 60), (0, 0, 30, 8), (-50, -50, 400, 400), (250, 250, 256, 256), (100, 100, 100, 100)],
)
def test_label_stays_inside_the_picture(box, monkeypatch):
    chips = []
    draw = ImageDraw.ImageDraw.rounded_rectangle
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "rounded_rectangle",
        lambda pen, xy, **style: (chips.append(xy), draw(pen, xy, **style)),
    )
    one_box(box, name="refrigerator")
    ((left, top, right, bottom),) = chips
    assert min(left, top) >= 0
    assert max(right, bottom) <= 255


def test_name_longer_than_the_picture_is_shortened():
    assert one_box((10, 50, 60, 90), (200, 200), name="x" * 500).size == (200, 200)


def test_small_box_at_the_upper_edge_is_not_hidden_by_its_label():
    picture = np.asarray(one_box((60, 2, 100, 22)))
    assert tuple(picture[12, 80]) == GRAY


def test_swapped_and_non_finite_corners_do_not_crash():
    boxes = np.array([[90, 90, 10, 10], [np.nan, 0, np.inf, 5]], np.float32)
    draw_detections(plain(100, 100), boxes, np.array([0.5, 0.6]), np.array([0, 1]), ["a", "b"])


def test_thumbnail_is_enlarged_until_letters_fit_and_boxes_go_along():
    picture = one_box((10, 14, 20, 24), (28, 28))
    assert picture.size == (196, 196)
    assert tuple(np.asarray(picture)[19 * 7, 70]) == class_color(0)
    assert draw_caption(plain(28, 28), "Ankle boot").size == (196, 196)


def test_original_stays_as_it_was():
    image = plain(300, 300)
    draw_caption(image, "cat")
    draw_detections(np.asarray(image), np.array([[1, 1, 99, 99]]), np.array([1.0]), np.array([0]), ["cat"])
    assert image.getcolors() == [(90000, GRAY)]


def test_caption_lies_along_the_lower_edge_and_long_text_ends_in_time():
    rows, _ = touched(draw_caption(plain(300, 300), "word " * 100))
    assert rows.min() > 260
    assert rows.max() == 299


def test_first_21_classes_have_different_colours():
    assert len({class_color(label) for label in range(3 * len(PALETTE))}) == 21


def test_only_detections_above_the_threshold_are_drawn():
    found = Detections(
        np.array([[10, 30, 90, 90], [120, 120, 190, 190]], np.float32),
        np.array([0.9, 0.3], np.float32),
        np.array([0, 1]),
        ("cat", "dog"),
    )
    _, columns = touched(found.draw(plain(200, 200)))
    assert columns.max() < 110
    _, columns = touched(found.draw(plain(200, 200), threshold=0.2))
    assert columns.max() > 180
    assert len(found.above(0.5)) == 1


def test_classification_without_a_class_says_so():
    empty = Classification(np.empty(0, np.int64), np.empty(0, np.float32), ())
    assert len(touched(empty.draw(plain(200, 200)))[0])
