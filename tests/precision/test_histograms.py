"""Values are counted exactly, in whatever order images come."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vitesse.errors import ModelError
from vitesse.precision.histograms import BINS, Collector


def gathered(images: list[NDArray[np.float32]], axis: int | None = None) -> Collector:
    collector = Collector("x", axis)
    for image in images:
        collector.add(image)
    return collector


def images_of_growing_range(count: int = 6) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(1)
    return [random.standard_normal((1, 5, 8)).astype(np.float32) * 3**at for at in range(count)]


def test_the_counts_are_those_of_numpy_over_all_values_at_once() -> None:
    images = images_of_growing_range()
    found = gathered(images).histogram()
    values = np.concatenate([image.ravel() for image in images])
    expected, _ = np.histogram(values, 2 * BINS, (-found.limit, found.limit))
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.total == values.size


def test_the_limit_is_a_power_of_two_just_above_every_magnitude() -> None:
    found = gathered([np.array([-5.0, 1.0], np.float32)]).histogram()
    assert found.limit == 8.0
    assert gathered([np.array([8.0], np.float32)]).histogram().limit == 16.0
    assert found.counts[BINS + BINS // 8] == 1, "1.0 is an eighth of the limit above zero"
    assert found.counts[BINS - 5 * BINS // 8] == 1


def test_the_order_of_images_changes_no_count() -> None:
    images = images_of_growing_range()
    forward, backward = gathered(images).histogram(), gathered(images[::-1]).histogram()
    np.testing.assert_array_equal(forward.counts, backward.counts)
    assert (forward.limit, forward.low, forward.high) == (backward.limit, backward.low, backward.high)


def test_an_outlier_widens_the_bins_and_not_the_histogram() -> None:
    small = np.ones((1, 100), np.float32)
    found = gathered([small, small * 1e6, small]).histogram()
    assert len(found.counts) == 2 * BINS
    assert found.total == 300


def test_exact_zeros_are_counted_apart_also_before_the_first_other_value() -> None:
    found = gathered([np.zeros(7, np.float32), np.array([0, 0, 1, -1], np.float32)]).histogram()
    assert found.zeros == 9
    assert found.magnitudes()[0].sum() == 11
    assert found.magnitudes(zeros=False)[0].sum() == 2


def test_nothing_but_zeros_has_no_width() -> None:
    found = gathered([np.zeros((1, 3), np.float32)]).histogram()
    assert (found.limit, found.low, found.high, found.zeros) == (0.0, 0.0, 0.0, 3)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e38])
def test_the_smallest_and_largest_floats_are_counted(scale: float) -> None:
    values = (np.array([1, -1, 2], np.float64) * scale).astype(np.float32)
    found = gathered([values]).histogram()
    assert found.total == 3
    assert found.high == values.max()


def test_half_precision_is_counted_as_it_is() -> None:
    found = gathered([np.array([0.5, -0.25], np.float16)]).histogram()
    assert (found.low, found.high) == (-0.25, 0.5)


@pytest.mark.parametrize(("axis", "others"), [(1, (0, 2)), (-1, (0, 1))])
def test_statistics_of_channels_are_those_of_all_images_together(axis: int, others: tuple[int, int]) -> None:
    images = [image + 2 for image in images_of_growing_range()]
    channels = gathered(images, axis).channels()
    assert channels is not None
    together = np.concatenate(images)
    np.testing.assert_array_equal(channels.abs_max, np.abs(together).max(axis=others))
    np.testing.assert_allclose(channels.mean, together.mean(axis=others, dtype=np.float64), rtol=1e-12)


def test_images_of_different_size_count_by_their_values() -> None:
    channels = gathered([np.zeros((1, 3, 2), np.float32), np.full((1, 1, 2), 4, np.float32)], -1).channels()
    assert channels is not None
    np.testing.assert_allclose(channels.mean, [1.0, 1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_tensor(bad: float) -> None:
    with pytest.raises(ModelError, match=r"`x` holds NaN or infinity(.|\n)*vitesse diagnose"):
        gathered([np.array([1.0, bad], np.float32)])
