import numpy as np
import pytest

from vitesse.data.results import Classification
from vitesse.errors import DataError
from vitesse.verify.top1 import top_accuracy


def ranked(*labels):
    scores = np.linspace(0.9, 0.1, len(labels), dtype=np.float32)
    return Classification(np.array(labels, np.int64), scores, ("x",) * len(labels))


def test_top1_counts_first_places_and_top5_the_first_five():
    results = [
        ranked(0, 1, 2, 3, 4, 5),
        ranked(1, 0, 2, 3, 4, 5),
        ranked(1, 2, 3, 4, 5, 0),
        ranked(0, 1, 2, 3, 4, 5),
    ]
    assert top_accuracy(results, [0, 0, 0, 0]) == {"top1": 0.5, "top5": 0.75}


def test_top5_of_five_classes_says_nothing_and_is_left_out():
    assert top_accuracy([ranked(0, 1, 2, 3, 4)], [0]) == {"top1": 1}


def test_empty_result_of_a_nan_model_is_wrong_even_for_class_zero():
    assert top_accuracy([ranked()], [0]) == {"top1": 0}


def test_no_image_is_refused():
    with pytest.raises(DataError, match="no image to measure top-1 on"):
        top_accuracy([], [])
