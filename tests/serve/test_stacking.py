"""What is laid together comes apart again, to whom it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from serve.sessions import asked
from vitesse.errors import BackendError
from vitesse.serve.stacking import Stack, check_axis, parts, rejoin, split
from vitesse.serve.work import Work


def test_joined_feeds_have_every_input_in_the_order_of_the_works() -> None:
    first = Work({"a": np.float32([[1], [2]]), "b": np.int64([10, 20])}, 0.0, 1.0)
    second = Work({"b": np.int64([30]), "a": np.float32([[3]])}, 0.0, 1.0)
    joined = Stack(4).join([first, second])
    np.testing.assert_array_equal(joined["a"], np.float32([[1], [2], [3]]))
    np.testing.assert_array_equal(joined["b"], [10, 20, 30])
    assert joined["a"].dtype == np.float32 and joined["b"].dtype == np.int64


def test_sizes_in_turn_share_the_memory_of_the_largest() -> None:
    stack = Stack(4)

    def address(size: int, count: int = 2) -> int:
        works = [asked(value, size=size) for value in range(count)]
        joined = stack.join(works)["x"]
        np.testing.assert_array_equal(joined, np.concatenate([work.feeds["x"] for work in works]))
        return joined.ctypes.data

    largest = address(50)
    assert {address(3), address(50, count=4), address(7, count=3), address(50)} == {largest}
    assert sum(kept.nbytes for kept in stack._bytes.values()) == 4 * 50 * 4


def test_types_in_turn_share_it_too() -> None:
    stack = Stack(2)
    for dtype in (np.float32, np.int64, np.bool_, np.float16):
        works = [
            Work({"x": np.ones((1, 3), dtype)}, 0.0, 1.0),
            Work({"x": np.zeros((1, 3), dtype)}, 0.0, 1.0),
        ]
        joined = stack.join(works)["x"]
        assert joined.dtype == dtype
        np.testing.assert_array_equal(joined, [[1, 1, 1], [0, 0, 0]])


def test_each_gets_a_copy_of_its_own_part() -> None:
    output = np.arange(6.0).reshape(3, 2)
    one, two = split({"y": output}, [1, 2])
    output[:] = -1
    np.testing.assert_array_equal(one["y"], [[0, 1]])
    np.testing.assert_array_equal(two["y"], [[2, 3], [4, 5]])


def test_one_request_gets_an_output_without_a_batch_axis_whole() -> None:
    assert split({"score": np.float32(3)[()] * np.ones(())}, [2])[0]["score"].shape == ()


@pytest.mark.parametrize("shape", [(), (2, 2), (4, 2)])
def test_an_output_that_cannot_be_given_back_by_item_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match=r"after a batch of 3(.|\n)*serve it with a batch of 1") as caught:
        split({"y": np.zeros(shape)}, [1, 2])
    assert f"the output y has the shape {shape}" in str(caught.value)


def test_parts_cover_all_items_in_order_and_come_together_again() -> None:
    feeds = asked(1, items=5).feeds
    cut = parts(feeds, 5, 2)
    assert [len(one["x"]) for one in cut] == [2, 2, 1]
    np.testing.assert_array_equal(rejoin(cut)["x"], feeds["x"])
    check_axis(cut[2], 1)
