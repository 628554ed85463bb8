"""One merge of tokens alone, against cases counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from compress.token_models import merged
from fusing import graph, run
from vitesse.compress.merging import Tokens, Writer, merge
from vitesse.fusion.folding import lift_constants

# Two heads of width 2: (1, 0) in both is the direction (1, 0).
EAST, NORTH, WEST = [1, 0, 1, 0], [0, 1, 0, 1], [-1, 0, -1, 0]


def merging(count: int, rate: int, *, sizes: bool = False, class_token: bool = False) -> onnx.ModelProto:
    """A graph of one merge: tokens, keys[, sizes] → values, all_sizes."""
    inputs = f"float[N,{count},1] tokens, float[N,{count},4] keys, float[N,{count}] sizes"
    model = ir.from_proto(graph("same = Identity (tokens)", inputs, f"float[N,{count},1] same", opset=18))
    tokens, keys, given = model.graph.inputs
    (anchor,) = model.graph
    before = Tokens(tokens, count, given if sizes else None, class_token)
    after = merge(Writer(model.graph, anchor, {}), before, keys, 2, rate)
    assert after.sizes is not None
    model.graph.outputs[:] = [after.values, after.sizes]
    for value in model.graph.outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    lift_constants(model)
    return ir.to_proto(model)


def feeds(tokens: Any, keys: Any, sizes: Any = None) -> dict[str, NDArray[np.float32]]:
    """One image, or several where `tokens` has two axes."""
    values = np.atleast_2d(np.asarray(tokens, np.float32))
    ones = np.ones_like(values) if sizes is None else np.atleast_2d(np.asarray(sizes, np.float32))
    directions = np.asarray(keys, np.float32)
    if directions.ndim == 2:
        directions = directions[None]
    return {"tokens": values[..., None], "keys": directions, "sizes": ones}


def test_the_most_similar_pair_becomes_its_mean_behind_the_tokens_that_stay() -> None:
    # A = tokens 0, 2, 4; B = 1, 3. Only 2 has a partner of its own direction: 3.
    keys = [EAST, NORTH, WEST, WEST, [1, 0.5, 1, 0.5]]
    values, sizes = run(merging(5, 1), feeds([10, 20, 30, 50, 70], keys))
    assert values[0, :, 0].tolist() == [10, 70, 20, 40]
    assert sizes[0].tolist() == [1, 1, 1, 2]


def test_two_tokens_with_the_same_partner_become_one_with_it() -> None:
    values, sizes = run(merging(5, 2), feeds([10, 20, 30, 60, 70], [EAST, NORTH, WEST, WEST, WEST]))
    assert values[0, :, 0].tolist() == pytest.approx([10, 20, (30 + 60 + 70) / 3])
    assert sizes[0].tolist() == [1, 1, 3]


def test_a_merged_token_weighs_as_many_as_it_stands_for() -> None:
    data = feeds([10, 20, 30, 60], [NORTH, EAST, WEST, WEST], sizes=[1, 1, 1, 5])
    values, sizes = run(merging(4, 1, sizes=True), data)
    assert values[0, :, 0].tolist() == pytest.approx([10, 20, (30 + 5 * 60) / 6])
    assert sizes[0].tolist() == [1, 1, 6]


def test_the_length_of_a_key_does_not_count() -> None:
    # By dot product token 0 would go to 3; by cosine 2 is nearer to 1 than anything else.
    keys = [[10, 9, 10, 9], NORTH, [0, 0.1, 0, 0.1], [100, 0, 100, 0]]
    values, _ = run(merging(4, 1), feeds([10, 20, 30, 60], keys))
    assert values[0, :, 0].tolist() == pytest.approx([10, 25, 60])


@pytest.mark.parametrize(("class_token", "first"), [(True, 10.0), (False, 30.0)])
def test_the_class_token_stays_even_if_another_has_its_very_key(class_token: bool, first: float) -> None:
    keys = [EAST, EAST, NORTH, WEST, NORTH]
    values, sizes = run(merging(5, 1, class_token=class_token), feeds([10, 20, 30, 60, 70], keys))
    assert values[0, 0, 0] == first
    assert sizes.sum() == 5


def test_of_equal_pairs_the_first_are_merged_into_the_first_partner() -> None:
    values, sizes = run(merging(7, 2), feeds([1, 2, 3, 4, 5, 6, 7], [EAST] * 7))
    # 0 and 2 of A go to token 1, the first of B; 4 and 6 stay.
    assert values[0, :, 0].tolist() == pytest.approx([5, 7, (2 + 1 + 3) / 3, 4, 6])
    assert sizes[0].tolist() == [1, 1, 3, 1, 1]


def test_what_stays_keeps_its_order_whatever_its_similarity() -> None:
    # Tokens 0, 4 and 8 are less and less alone; 2 and 6 go.
    keys = [WEST, EAST, EAST, EAST, NORTH, EAST, EAST, EAST, [1, 0.1, 1, 0.1]]
    values, _ = run(merging(9, 2), feeds(range(9), keys))
    assert values[0, :3, 0].tolist() == [0, 4, 8]


def test_a_key_of_zero_gives_numbers() -> None:
    values, sizes = run(merging(5, 2), feeds([1, 2, 3, 4, 5], np.zeros((5, 4))))
    assert np.isfinite(values).all()
    assert sizes.sum() == 5


@pytest.mark.parametrize("count", [4, 5, 16, 17])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_image_is_merged_for_itself_and_no_token_is_lost(count: int, batch: int) -> None:
    random = np.random.default_rng(count)
    tokens = random.standard_normal((batch, count))
    keys = random.standard_normal((batch, count, 4))
    sizes = random.integers(1, 5, (batch, count))
    for rate in {1, (count - 1) // 2}:
        values, new_sizes = run(merging(count, rate, sizes=True), feeds(tokens, keys, sizes))
        assert new_sizes.sum(axis=1).tolist() == sizes.sum(axis=1).tolist()
        for image in range(batch):
            expected = merged(
                tokens[image, :, None], keys[image], sizes[image].tolist(), rate, protected=False
            )
            np.testing.assert_allclose(values[image], expected[0], atol=1e-5)
            np.testing.assert_allclose(new_sizes[image], expected[1])
        # The weighted sum of all tokens does not change: an unweighted mean would change it.
        np.testing.assert_allclose(
            (values[..., 0] * new_sizes).sum(axis=1), (tokens * sizes).sum(axis=1), atol=1e-4
        )
