from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitesse.data.postprocess import class_count, decode
from vitesse.errors import SpecError
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

NAN = float("nan")
DETR = {"logits": "logits", "boxes": "boxes"}
POST = {"labels": "labels", "boxes": "boxes", "scores": "scores"}


def classifier(labels=()):
    return ModelSpec(
        Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((8, 8)), labels=tuple(labels)
    )


def detector(decode_rule, labels=(), size=(100, 200), size_input=None, top_k=300, **rules):
    outputs = POST if decode_rule is Decode.POSTPROCESSED else DETR
    return ModelSpec(
        Task.DETECTION,
        decode_rule,
        "x",
        outputs,
        Preprocessing(size, **rules),
        size_input=size_input,
        labels=tuple(labels),
        top_k=top_k,
    )


def test_classes_come_sorted_with_softmax_scores_and_names():
    (result,) = decode({"y": np.log([[0.2, 0.7, 0.1]])}, classifier("abc"), [(8, 8)])
    assert result.labels.tolist() == [1, 0, 2]
    assert result.names == ("b", "a", "c")
    np.testing.assert_allclose(result.scores, [0.7, 0.2, 0.1], rtol=1e-6)
    assert result.scores.dtype == np.float32
    assert result.labels.dtype == np.int64


def test_large_float16_logits_do_not_overflow():
    (result,) = decode({"y": np.array([[60000, -60000, 59000]], np.float16)}, classifier(), [(8, 8)])
    assert result.scores.tolist() == [1, 0, 0]


def test_a_thousand_classes_are_cut_to_the_best_hundred():
    logits = np.random.default_rng(0).normal(size=(1, 1000))
    (result,) = decode({"y": logits}, classifier(), [(8, 8)])
    assert result.labels.tolist() == np.argsort(-logits[0])[:100].tolist()


def test_nan_class_is_left_out_and_nan_throughout_gives_nothing():
    spec = classifier("abc")
    first, second, third = decode(
        {"y": np.array([[NAN, 0, 1], [NAN, NAN, NAN], [np.inf, 0, NAN]])}, spec, [(8, 8)] * 3
    )
    assert first.labels.tolist() == [2, 1]
    assert second.labels.tolist() == []
    assert third.labels.tolist() == [0, 1]
    assert third.scores.tolist() == [1, 0]


def test_softmax_queries_ignore_the_no_object_class_and_scale_boxes_to_the_image():
    logits = np.log([[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]]).astype(np.float32)
    boxes = np.array([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]], np.float32)
    (result,) = decode({"logits": logits, "boxes": boxes}, detector(Decode.DETR_SOFTMAX, "ab"), [(50, 400)])
    assert result.labels.tolist() == [0, 1]
    np.testing.assert_allclose(result.scores, [0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(result.boxes_xyxy, [[0, 0, 200, 50], [160, 15, 240, 35]], rtol=1e-5)
    assert result.boxes_xyxy.dtype == np.float32


def test_sigmoid_takes_the_best_pairs_of_query_and_class():
    scores = np.array([[[0.9, 0.8], [0.1, 0.95]]])
    logits = np.log(scores / (1 - scores)).astype(np.float32)
    boxes = np.array([[[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5]]], np.float32)
    spec = detector(Decode.DETR_SIGMOID, "ab", top_k=3)
    (result,) = decode({"logits": logits, "boxes": boxes}, spec, [(100, 200)])
    assert result.labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose(result.scores, [0.95, 0.9, 0.8], rtol=1e-5)
    np.testing.assert_allclose(result.boxes_xyxy[:2], [[0, 0, 100, 50], [0, 0, 200, 100]], rtol=1e-5)


def post(labels, boxes, scores):
    return {
        "labels": np.array(labels),
        "boxes": np.array(boxes, np.float32),
        "scores": np.array(scores, np.float32),
    }


def test_postprocessed_boxes_are_taken_as_they_are_and_sorted():
    outputs = post([[3, 1]], [[[1, 2, 3, 4], [5, 6, 7, 8]]], [[0.2, 0.8]])
    (result,) = decode(outputs, detector(Decode.POSTPROCESSED, "abcd", size_input="s"), [(500, 700)])
    assert result.labels.tolist() == [1, 3]
    assert result.boxes_xyxy.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
    assert result.names == ("b", "d")


def test_postprocessed_boxes_without_a_size_input_are_pixels_of_the_tensor():
    outputs = post([[0]], [[[20, 10, 40, 30]]], [[1]])
    (result,) = decode(outputs, detector(Decode.POSTPROCESSED), [(50, 400)])
    assert result.boxes_xyxy.tolist() == [[40, 5, 80, 15]]


def test_letterboxed_boxes_lose_the_padding():
    boxes = np.array(
        [[[0.5, 0.25, 1.0, 0.5]]], np.float32
    )  # the upper half of a square tensor: the whole image
    outputs = {"logits": np.zeros((1, 1, 2), np.float32), "boxes": boxes}
    spec = detector(Decode.DETR_SOFTMAX, size=(100, 100), resize=Resize.LETTERBOX)
    (result,) = decode(outputs, spec, [(300, 600)])
    assert result.boxes_xyxy.tolist() == [[0, 0, 600, 300]]
    inside = post([[0]], [[[0, 0, 100, 50]]], [[1]])
    spec = detector(Decode.POSTPROCESSED, size=(100, 100), resize=Resize.LETTERBOX, size_input="s")
    (result,) = decode(inside, spec, [(300, 600)])
    assert result.boxes_xyxy.tolist() == [[0, 0, 600, 300]]


def test_cropped_boxes_get_back_what_was_cut_off():
    outputs = {"logits": np.zeros((1, 1, 2), np.float32), "boxes": np.array([[[0.5, 0.5, 1, 1]]], np.float32)}
    spec = detector(Decode.DETR_SOFTMAX, size=(100, 100), resize=Resize.CROP)
    (result,) = decode(outputs, spec, [(300, 600)])
    assert result.boxes_xyxy.tolist() == [[150, 0, 450, 300]]


def test_queries_with_nan_or_negative_labels_are_left_out():
    boxes = [[[0, 0, 1, 1], [0, 0, NAN, 1], [0, 0, 2, 2], [0, 0, 3, 3], [0, 0, np.inf, 3]]]
    outputs = post([[0, 0, 0, -1, 0]], boxes, [[0.5, 0.9, NAN, 0.8, 0.7]])
    (result,) = decode(outputs, detector(Decode.POSTPROCESSED, size_input="s"), [(9, 9)])
    assert result.scores.tolist() == [0.5]


def test_results_do_not_change_when_the_session_overwrites_its_buffers():
    outputs = post([[0]], [[[1, 2, 3, 4]]], [[0.5]])
    (result,) = decode(outputs, detector(Decode.POSTPROCESSED, size_input="s"), [(9, 9)])
    for array in outputs.values():
        array[:] = 7
    assert result.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert result.scores.tolist() == [0.5]
    assert result.labels.tolist() == [0]


WILD = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=60, deadline=None)
@given(
    logits=arrays(np.float32, (2, 4, 3), elements=WILD),
    boxes=arrays(np.float32, (2, 4, 4), elements=WILD),
    rule=st.sampled_from([Decode.DETR_SOFTMAX, Decode.DETR_SIGMOID]),
)
def test_wild_outputs_never_crash_and_never_leave_a_nan_behind(logits, boxes, rule):
    for result in decode({"logits": logits, "boxes": boxes}, detector(rule), [(10, 20), (30, 40)]):
        assert np.isfinite(result.scores).all()
        assert not np.isnan(result.boxes_xyxy).any()
        assert (np.diff(result.scores) <= 0).all()
        assert len(result.names) == len(result.labels) == len(result.scores) == len(result.boxes_xyxy)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (3, 5), elements=WILD))
def test_wild_logits_never_crash(logits):
    for result in decode({"y": logits}, classifier(), [(8, 8)] * 3):
        assert np.isfinite(result.scores).all()


def test_class_count_mismatch_names_both_numbers():
    with pytest.raises(SpecError, match="the model has 4 classes, the spec names 3 labels"):
        decode({"y": np.zeros((1, 4))}, classifier("abc"), [(8, 8)])
    outputs = {"logits": np.zeros((1, 2, 4)), "boxes": np.zeros((1, 2, 4))}
    with pytest.raises(SpecError, match="has 3 classes and one for no-object, the spec names 4 labels"):
        decode(outputs, detector(Decode.DETR_SOFTMAX, "abcd"), [(8, 8)])
    with pytest.raises(SpecError, match="has 4 classes, the spec names 3 labels"):
        decode(outputs, detector(Decode.DETR_SIGMOID, "abc"), [(8, 8)])
    with pytest.raises(SpecError, match="answered class 90, the spec names 2 labels"):
        decode(
            post([[90]], [[[0, 0, 1, 1]]], [[1]]),
            detector(Decode.POSTPROCESSED, "ab", size_input="s"),
            [(8, 8)],
        )


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": np.zeros((1, 2, 4))}, "no output 'boxes' for boxes"),
        (
            {"logits": np.zeros((1, 4)), "boxes": np.zeros((1, 2, 4))},
            r"shape \(1, 4\)\n  expected: \(N, queries, cl",
        ),
        (
            {"logits": np.zeros((1, 2, 4)), "boxes": np.zeros((1, 2, 5))},
            r"shape \(1, 2, 5\)\n  expected: \(N, qu",
        ),
        ({"logits": np.zeros((2, 2, 4)), "boxes": np.zeros((2, 2, 4))}, "holds 2 images\n  expected: 1"),
        ({"logits": np.zeros((1, 3, 4)), "boxes": np.zeros((1, 2, 4))}, "logits 3, boxes 2"),
    ],
)
def test_output_of_another_shape_is_refused_with_what_came_and_what_was_expected(outputs, words):
    with pytest.raises(SpecError, match=words):
        decode(outputs, detector(Decode.DETR_SOFTMAX), [(8, 8)])


def test_class_count_is_read_from_the_logits():
    assert class_count({"y": np.zeros((1, 7))}, classifier()) == 7
    outputs = {"logits": np.zeros((1, 2, 11)), "boxes": np.zeros((1, 2, 4))}
    assert class_count(outputs, detector(Decode.DETR_SOFTMAX)) == 10
    assert class_count(outputs, detector(Decode.DETR_SIGMOID)) == 11
    assert class_count({}, detector(Decode.POSTPROCESSED)) is None
    assert class_count({}, detector(Decode.POSTPROCESSED, "abc")) == 3


def test_boxes_of_a_model_that_masks_padding_are_relative_to_the_image_alone():
    letterboxed = detector(Decode.DETR_SIGMOID, size=(100, 200), resize=Resize.LETTERBOX)
    masked = replace(letterboxed, valid_size_input="valid")
    raw = {"logits": np.array([[[5.0]]]), "boxes": np.array([[[0.5, 0.5, 1.0, 1.0]]])}
    # 50×50 becomes 100×100 at the left of a tensor of 100×200
    assert decode(raw, masked, [(50, 50)])[0].boxes_xyxy.tolist() == [[0, 0, 50, 50]]
    assert decode(raw, letterboxed, [(50, 50)])[0].boxes_xyxy.tolist() == [[0, 0, 100, 50]]


def test_boxes_of_an_image_of_its_own_size_fill_it():
    spec = detector(Decode.DETR_SIGMOID, size=(80, 133), resize=Resize.SHORTEST)
    raw = {"logits": np.array([[[5.0]]]), "boxes": np.array([[[0.5, 0.5, 1.0, 1.0]]])}
    np.testing.assert_allclose(decode(raw, spec, [(300, 1000)])[0].boxes_xyxy, [[0, 0, 1000, 300]], rtol=1e-6)
