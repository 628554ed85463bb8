import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

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


@pytest.fixture
def chips(monkeypatch):
    """Corners of the labels, as they are drawn."""
    drawn = []
    draw = ImageDraw.ImageDraw.rounded_rectangle

    def recording(pen, xy, **style):
        drawn.append(xy)
        draw(pen, xy, **style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", recording)
    return drawn


@pytest.mark.parametrize(
    "box",
    [(200, 0, 256, 60), (0, 0, 30, 8), (-50, -50, 400, 400), (250, 250, 256, 256), (100, 100, 100, 100)],
)
def test_label_stays_inside_the_picture(box, chips):
    one_box(box, name="refrigerator")
    ((left, top, right, bottom),) = chips
    assert min(left, top) >= 0
    assert max(right, bottom) <= 255


def test_labels_of_boxes_that_nearly_coincide_do_not_hide_each_other(chips):
    boxes = np.array([[50, 60, 150, 180], [52, 62, 152, 182], [54, 58, 148, 178]], np.float32)
    scores = np.array([0.9, 0.8, 0.7])
    draw_detections(plain(256, 256), boxes, scores, np.zeros(3, int), ["cat"] * 3)
    for index, one in enumerate(chips):
        for other in chips[index + 1 :]:
            assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def test_best_label_lies_on_top_where_there_is_no_free_place(chips):
    boxes = np.tile(np.array([0, 0, 200, 40], np.float32), (9, 1))
    draw_detections(plain(200, 40), boxes, np.linspace(0.9, 0.1, 9), np.arange(9), ["a long name"] * 9)
    assert len(chips) == 9
    assert chips[-1][:2] == (0, 0)


def test_pillow_without_freetype_still_writes(monkeypatch):
    bitmap = ImageFont.load_default_imagefont()

    def without_freetype(size=None):
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return bitmap

    monkeypatch.setattr(ImageFont, "load_default", without_freetype)
    assert len(touched(one_box((60, 80, 160, 200)))[0]) > 1000
    assert touched(draw_caption(plain(300, 300), "cat"))[0].min() > 260


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
