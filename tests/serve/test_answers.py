import io
import json

import numpy as np
import pytest
from PIL import Image

from serve.pictures import encoded, oriented, scene
from vitesse.data.images import decode_image
from vitesse.data.results import Classification, Detections
from vitesse.serve.answers import classification, detection, draw, results_of
from vitesse.serve.images import Picture, feeds_of, picture_of
from vitesse.serve.limits import Limits
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

FOUND = Detections(
    np.array([[12.345, 8, 96.256, 80], [-3, 0, 20, 20], [1, 1, 2, 2]], np.float32),
    np.array([0.91234567, 0.5, 0.49999], np.float32),
    np.array([3, 0, 3]),
    ("bag", "shoe", "bag"),
)
CLASSES = Classification(
    np.array([2, 0, 1]), np.array([0.7, 0.2, 0.1], np.float32), ("coat", "shirt", "dress")
)


def detector(resize=Resize.STRETCH, size=(64, 96), **rules):
    outputs = {"logits": "logits", "boxes": "boxes"}
    rules = Preprocessing(size, resize, **rules)
    return ModelSpec(
        Task.DETECTION, Decode.DETR_SIGMOID, "pixels", outputs, rules, labels=("a", "b"), top_k=1
    )


def outputs_with_box(*box):
    logits = np.array([[[9, -9], [-9, -9]]], np.float32)
    return {"logits": logits, "boxes": np.array([[box, (0.5, 0.5, 1, 1)]], np.float32)}


def test_detections_at_or_above_the_threshold_are_told_best_first():
    document = detection(FOUND, (480, 640), served_by="live", timings={"infer": 0.0123456, "total": 1})
    assert json.loads(json.dumps(document)) == {
        "detections": [
            {"label": "bag", "class": 3, "score": 0.912346, "box_xyxy": [12.35, 8.0, 96.26, 80.0]},
            {"label": "shoe", "class": 0, "score": 0.5, "box_xyxy": [-3.0, 0.0, 20.0, 20.0]},
        ],
        "image": {"width": 640, "height": 480},
        "threshold": 0.5,
        "served_by": "live",
        "timings_ms": {"infer": 12.346, "total": 1000},
    }


def test_no_detection_is_an_empty_list():
    document = detection(FOUND, (480, 640), threshold=0.95)
    assert document["detections"] == []
    assert document["threshold"] == 0.95


@pytest.mark.parametrize(
    ("top", "expected"), [(1, ["coat"]), (2, ["coat", "shirt"]), (9, ["coat", "shirt", "dress"])]
)
def test_classes_are_told_best_first_and_no_more_than_asked_for(top, expected):
    document = classification(CLASSES, top, size=(20, 30), served_by="reference")
    assert [row["label"] for row in document["classes"]] == expected
    assert document["classes"][0] == {"label": "coat", "class": 2, "score": 0.7}
    assert document["image"] == {"width": 30, "height": 20}
    assert document["served_by"] == "reference"
    json.dumps(document, allow_nan=False)


def test_a_model_that_answers_nan_gives_no_class_and_valid_json():
    spec = ModelSpec(
        Task.CLASSIFICATION, Decode.LOGITS, "pixels", {"logits": "logits"}, Preprocessing((8, 8))
    )
    pixels = scene()
    outputs = {"logits": np.full((1, 3), np.nan, np.float32)}
    (result,) = results_of(outputs, spec, [Picture(Image.fromarray(pixels), (48, 64))])
    assert isinstance(result, Classification)
    document = classification(result)
    assert document["classes"] == []
    json.dumps(document, allow_nan=False)


def test_a_drawn_answer_is_a_png_of_the_picture_with_the_boxes_on_it():
    pixels = scene(320, 240)
    drawn = draw(pixels, FOUND)
    assert drawn.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.size == (320, 240)
        assert np.array_equal(np.asarray(picture), np.asarray(FOUND.draw(pixels)))
    with Image.open(io.BytesIO(draw(pixels, FOUND, threshold=0.95))) as empty:
        assert np.array_equal(np.asarray(empty), pixels)


def test_a_class_is_written_on_the_picture():
    pixels = scene(320, 240)
    with Image.open(io.BytesIO(draw(pixels, CLASSES))) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(CLASSES.draw(pixels)))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", [Resize.STRETCH, Resize.LETTERBOX])
def test_boxes_are_in_pixels_of_the_upright_image_however_it_was_decoded(orientation, resize):
    body = oriented(scene(800, 600), orientation)
    spec = detector(resize)
    whole, fast = picture_of(body, Limits()), picture_of(body, Limits(), reduced_for=spec)
    assert fast.pixels.shape[0] < whole.pixels.shape[0]
    outputs = outputs_with_box(0.25, 0.25, 0.1, 0.2)
    (expected,), (found,) = results_of(outputs, spec, [whole]), results_of(outputs, spec, [fast])
    assert isinstance(found, Detections)
    assert isinstance(expected, Detections)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1)
    if resize is Resize.STRETCH:
        height, width = whole.size
        corners = [0.2 * width, 0.15 * height, 0.3 * width, 0.35 * height]
        np.testing.assert_allclose(found.boxes_xyxy[0], corners, rtol=1e-5)


def test_pictures_of_one_batch_each_get_the_boxes_of_their_own_size():
    spec = detector()
    pictures = [picture_of(encoded(scene(*size)), Limits()) for size in ((64, 48), (200, 100))]
    assert feeds_of([picture.pixels for picture in pictures], spec)["pixels"].shape[0] == 2
    one = outputs_with_box(0.5, 0.5, 1, 1)
    both = {name: np.concatenate([array, array]) for name, array in one.items()}
    corners = [result.boxes_xyxy[0].tolist() for result in results_of(both, spec, pictures)]
    assert corners == [[0, 0, 64, 48], [0, 0, 200, 100]]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_picture_that_stays_with_pillow_is_fed_as_its_pixels_are_to_the_last_bit(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(scene()).save(stream, kind, **({} if kind == "BMP" else {"exif": exif}))
    picture = picture_of(stream.getvalue(), Limits())
    spec = detector(size=(20, 24))
    kept, copied = feeds_of([picture.image], spec)["pixels"], feeds_of([picture.pixels], spec)["pixels"]
    assert kept.tobytes() == copied.tobytes()
    assert copied.tobytes() == feeds_of([decode_image(stream.getvalue())], spec)["pixels"].tobytes()
