"""Work as such: what it holds, and what lines it may stand in."""

import gc
import weakref

import numpy as np
import pytest

from vitesse.serve.work import Promise, Work, all_finite


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


@pytest.mark.parametrize("end", ["result", "error", "cancelled"])
def test_a_promise_forgets_whom_it_has_called(end):
    class Holder:
        def __init__(self):
            self.promise, self.called = Promise(), 0
            self.promise.add_done_callback(self.ended)  # a circle: holder, promise, callback, holder

        def ended(self, _):
            self.called += 1

    gc.collect()
    gc.disable()
    try:
        holder = Holder()
        gone = weakref.ref(holder)
        if end == "cancelled":
            holder.promise.cancel()
        elif end == "error":
            holder.promise.set_exception(ValueError())
        else:
            holder.promise.set_result(1)
        assert holder.called == 1
        del holder
        assert gone() is None, "without the garbage collector"
    finally:
        gc.enable()


def test_a_promise_that_has_ended_calls_at_once():
    promise, seen = Promise(), []
    promise.set_result(3)
    promise.add_done_callback(lambda ended: seen.append(ended.result()))
    assert seen == [3]
