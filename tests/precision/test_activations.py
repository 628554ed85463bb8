"""Statistics of tensors against numbers that are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fusing import graph, normal
from vitesse.errors import DataError
from vitesse.precision import activations
from vitesse.precision.activations import LOWEST_OCTAVE, observe

X = "float[1,4] x"


def _octave(exponent: int) -> int:
    return exponent - LOWEST_OCTAVE


def test_range_small_end_and_octaves_are_those_of_all_images():
    model = graph("y = Neg(x)", X, "float[1,4] y")
    images = [{"x": np.array([row], np.float32)} for row in ([1, -3, 0, 0.25], [2, 0, 0, 5])]
    seen = observe(model, images)
    assert set(seen) == {"x", "y"}
    x, y = seen["x"], seen["y"]
    assert (x.low, x.high, x.largest, x.smallest, x.nonfinite) == (-3, 5, 5, 0.25, 0)
    assert (y.low, y.high, y.largest) == (-5, 3, 5)
    # 0.25 in [2⁻², 2⁻¹), 1 in [2⁰, 2¹), -3 and 2 in [2¹, 2²), 5 in [2², 2³); zeros have no octave.
    expected = {_octave(-2): 1, _octave(0): 1, _octave(1): 2, _octave(2): 1}
    assert {int(at): int(x.octaves[at]) for at in np.flatnonzero(x.octaves)} == expected
    assert x.share_below(0) == 1 / 5 and x.share_below(-2) == 0 and x.share_below(99) == 1


def test_a_range_that_does_not_cross_zero_is_not_stretched_to_it():
    seen = observe(graph("y = Neg(x)", X, "float[1,4] y"), [{"x": np.full((1, 4), 7, np.float32)}])["x"]
    assert (seen.low, seen.high) == (7, 7)


def test_masks_and_infinities_are_not_part_of_the_range():
    images = [{"x": np.array([[-1e9, -np.inf, 3, np.nan]], np.float32)}]
    seen = observe(graph("y = Identity(x)", X, "float[1,4] y"), images)["y"]
    assert (seen.low, seen.high, seen.nonfinite) == (3, 3, 2)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("y = ReduceSum<keepdims = 1>(x, axes)", 1 + 2 + 3 + 4),
        ("y = ReduceMean<axes = [-1], keepdims = 1>(x)", 1 + 2 + 3 + 4),
        ("y = ReduceL2<axes = [1], keepdims = 1>(x)", 1 + 4 + 9 + 16),
    ],
)
def test_the_largest_sum_of_a_reduction_is_of_magnitudes_before_division_or_root(node: str, expected: int):
    model = graph(node, X, "float[1,1] y", axes=np.array([1]))
    images = [{"x": np.array([row], np.float32)} for row in ([1, -2, 3, -4], [1, 1, 1, 1])]
    seen = observe(model, images)
    assert seen["y"].largest_sum == expected and seen["x"].largest_sum is None


def test_a_sum_whose_axes_only_the_image_knows_is_not_guessed():
    model = graph("a = Shape(x) k = Size(a) l = Sub(k, one) r = Reshape(l, list) y = ReduceSum(x, r)", X,
                  "float[1,1] y", one=np.array(1), list=np.array([1]))  # fmt: skip
    assert observe(model, [{"x": np.ones((1, 4), np.float32)}])["y"].largest_sum is None


def test_scores_inside_a_fused_attention_are_seen():
    shape = "float[1,2,4,8]"
    model = graph("y = Attention<scale = 0.5>(x, x, x)", f"{shape} x", f"{shape} y", opset=23)
    x = normal(1, 2, 4, 8)
    scores = 0.5 * x @ x.transpose(0, 1, 3, 2)
    seen = observe(model, [{"x": x}])["y/scores"]
    np.testing.assert_allclose([seen.low, seen.high], [scores.min(), scores.max()], rtol=1e-5)
    assert len(model.graph.node[0].output) == 1  # the caller's graph is untouched


def test_groups_of_any_size_see_the_same(monkeypatch: pytest.MonkeyPatch):
    body = " ".join(["t0 = Neg(x)", *(f"t{i} = Sin(t{i - 1})" for i in range(1, 9)), "y = Add(t8, t0)"])
    model = graph(body, X, "float[1,4] y")
    images = [{"x": normal(1, 4, seed=seed)} for seed in range(4)]
    at_once = observe(model, images)
    monkeypatch.setattr(activations, "_FIRST_GROUP", 2)
    one_by_one = observe(model, iter(images), group_bytes=1)
    assert {name: (s.low, s.high, s.smallest) for name, s in at_once.items()} == {
        name: (s.low, s.high, s.smallest) for name, s in one_by_one.items()
    }


def test_integers_are_not_looked_at():
    model = graph("s = Shape(x) y = Neg(x)", X, "float[1,4] y")
    assert set(observe(model, [{"x": np.ones((1, 4), np.float32)}])) == {"x", "y"}


def test_no_image_is_refused_in_words():
    with pytest.raises(DataError, match="no image was read") as refusal:
        observe(graph("y = Neg(x)", X, "float[1,4] y"), iter(()))
    assert "--calib-data" in str(refusal.value)
