import numpy as np
import pytest

from vitesse.data.results import Classification, Detections
from vitesse.errors import DataError, NotVerified
from vitesse.verify.agreement import classification_agreement, detection_agreement


def ranked(*labels):
    return Classification(np.array(labels, np.int64), np.ones(len(labels), np.float32), ("x",) * len(labels))


def found(seed=0, count=12, shift=0.0, sure=6):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 200, (count, 2))
    boxes = np.column_stack((corners, corners + random.uniform(20, 90, (count, 2)))) + shift
    scores = np.concatenate((np.linspace(0.95, 0.55, sure), np.linspace(0.45, 0.05, count - sure)))
    return Detections(
        boxes.astype(np.float32), scores.astype(np.float32), random.integers(0, 3, count), ("x",) * count
    )


def test_classes_agree_where_the_first_one_is_the_same():
    original = [ranked(1, 2), ranked(2, 1), ranked(0, 1), ranked(0, 1)]
    ours = [ranked(1, 0), ranked(1, 2), ranked(0, 2), ranked(0, 1)]
    assert classification_agreement(ours, original) == {"agreement": 0.75}


def test_empty_results_agree_with_nothing():
    assert classification_agreement([ranked()], [ranked()]) == {"agreement": 0}
    with pytest.raises(DataError, match="no image to compare"):
        classification_agreement([], [])


def test_detector_agrees_with_itself_although_its_doubtful_detections_are_no_objects():
    original = {key: found(key) for key in range(5)}
    figures = detection_agreement(original, original)
    assert figures["agreement"] == pytest.approx(1)
    assert figures["objects_per_image"] == 6


def test_shifted_boxes_and_other_classes_lower_the_agreement():
    original = {key: found(key) for key in range(5)}
    shifted = {key: found(key, shift=8.0) for key in range(5)}
    assert 0.05 < detection_agreement(shifted, original)["agreement"] < 0.7
    renamed = {
        key: Detections(one.boxes_xyxy, one.scores, (one.labels + 1) % 3, one.names)
        for key, one in original.items()
    }
    assert detection_agreement(renamed, original)["agreement"] < 0.05


def test_original_that_is_confident_nowhere_leaves_the_question_open():
    original = {1: found(sure=0)}
    with pytest.raises(NotVerified, match=r"finds nothing with a score of 0\.5 or more in 1 images"):
        detection_agreement(original, original)
    assert detection_agreement(original, original, confident=0.2)["agreement"] == pytest.approx(1)
