"""Work as such: what it holds, and what lines it may stand in."""

import numpy as np
import pytest

from vitesse.serve.work import Work, all_finite


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 3, 5000])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_wherever_it_stands(dtype, count, wrong):
    largest = np.full(count, np.finfo(dtype).max, dtype)
    assert all_finite(largest), "though their sum is not"
    for place in {0, count // 2, count - 1}:
        array = largest.copy()
        array[place] = wrong
        assert not all_finite(array)
        assert not all_finite(array[::-1][None])


@pytest.mark.parametrize("array", [np.array([0, 1]), np.array([True]), np.array(["NaN"], object)])
def test_types_that_have_no_nan_are_finite(array):
    assert all_finite(array)


def test_an_array_without_values_is_finite():
    assert all_finite(np.zeros((1, 0), np.float32))


def test_only_work_of_equal_names_types_and_shapes_may_share_a_batch():
    def key(array, name="x"):
        return Work({name: array}, 0.0, 1.0).key

    one = np.zeros((1, 4), np.float32)
    assert key(one) == key(np.ones((3, 4), np.float32))
    assert (
        len({key(one), key(one, "y"), key(one.astype(np.float64)), key(one[:, :2]), key(one[..., None])}) == 5
    )
