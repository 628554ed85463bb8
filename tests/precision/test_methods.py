"""Each method against cases worked out by hand, then what must hold whatever the values."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vitesse.precision.histograms import Collector, Histogram
from vitesse.precision.methods import choose, divergence, entropy, minmax, mse, percentile, squared_error
from vitesse.recipe import METHODS

RANDOM = np.random.default_rng(5)
VALUES: dict[str, NDArray[np.float64]] = {
    "normal": RANDOM.standard_normal(40_000),
    "behind a relu": np.maximum(RANDOM.standard_normal(40_000), 0),
    "long tails": RANDOM.standard_t(3, 40_000),
    "an outlier": np.append(RANDOM.standard_normal(40_000), 60.0),
    "all negative": -RANDOM.random(4_000) - 1,
    "one value": np.full(100, 0.3),
    "all zero": np.zeros(50),
}
BOTH = pytest.mark.parametrize("symmetric", [True, False])
EVERY = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


def positive(*counts: int, zeros: int = 0) -> Histogram:
    """Values from 0 on, in bins of width 1; the largest value lies at the end of the last bin."""
    last = max(at for at, count in enumerate(counts) if count) + 1
    both = np.array([0] * len(counts) + list(counts), np.int64)
    both[len(counts)] += zeros
    return Histogram(both, float(len(counts)), 0.0, float(last), zeros)


def both_sides(counts: list[int]) -> Histogram:
    """Values round zero, in bins of width 1, the outermost filled to their ends."""
    end = len(counts) / 2
    return Histogram(np.array(counts, np.int64), end, -end, end)


def seen(values: NDArray[np.float64]) -> Histogram:
    collector = Collector("x")
    collector.add(values.astype(np.float32))
    return collector.histogram()


def quantised(values: NDArray[np.float64], low: float, high: float, symmetric: bool) -> NDArray[np.float64]:
    """Eight bits, written as ONNX's QuantizeLinear and DequantizeLinear say."""
    if symmetric:
        step = max(high / 127, 1e-30)
        return np.clip(np.rint(values / step), -127, 127) * step
    step = max((high - low) / 255, 1e-30)
    zero_point = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero_point, 0, 255) - zero_point) * step


def test_minmax_by_hand() -> None:
    sides = Histogram(np.array([1, 0, 0, 1], np.int64), 8.0, -3.0, 5.0)
    assert minmax(sides, 8, True) == (-5.0, 5.0)
    assert minmax(sides, 8, False) == (-3.0, 5.0)


def test_minmax_reaches_down_to_zero_though_no_value_is_near() -> None:
    assert minmax(Histogram(np.array([0, 0, 0, 9], np.int64), 8.0, 5.0, 7.0), 8, False) == (0.0, 7.0)
    assert minmax(Histogram(np.array([9, 0, 0, 0], np.int64), 8.0, -7.0, -5.0), 8, False) == (-7.0, 0.0)


def test_percentile_of_magnitudes_by_hand() -> None:
    # |x| in 0…1, 1…2, 2…3, 3…4: 60, 30, 9, 1 of 100. Below 2 lie exactly 90; 95 needs 5 of the 9 above 2.
    sides = both_sides([1, 4, 10, 30, 30, 20, 5, 0])
    assert percentile(sides, 8, True, 90) == (-2.0, 2.0)
    assert percentile(sides, 8, True, 95) == pytest.approx((-2 - 5 / 9, 2 + 5 / 9))


def test_percentile_of_both_tails_by_hand() -> None:
    # 90 % stay inside, so 5 of 100 go on each side: the outermost bins, below -3 and above 3. With 80 %, 10 go:
    # 5 of the 20 in -3…-2 too, a quarter of that bin, and on the other side 5 of the 10 in 2…3.
    sides = both_sides([5, 20, 15, 10, 15, 20, 10, 5])
    assert percentile(sides, 8, False, 90) == pytest.approx((-3.0, 3.0))
    assert percentile(sides, 8, False, 80) == pytest.approx((-2.75, 2.5))


def test_percentile_does_not_count_exact_zeros() -> None:
    # Of the 10 values that are not 0, 9 lie below 2. Of 100 values with the zeros, 90 % are reached in the first bin.
    assert percentile(positive(4, 5, 0, 1, zeros=90), 8, True, 90) == (-2.0, 2.0)


@pytest.mark.parametrize(
    ("top", "error"),
    [
        # 2 bits: -T, 0, T. Nine values spread over 1…2, one over 3…4. Integrals over a bin:
        # T=4: 1…2 → 0: ∫x² = 7/3; 3…4 → 4: 1/3.                              (9·7/3 + 1/3) / 10
        (4.0, 64 / 30),
        # T=3: 1…1.5 → 0 and 1.5…2 → 3: both 19/24; 3…4 → 3: 1/3.               (9·19/12 + 1/3) / 10
        (3.0, 175 / 120),
        # T=2: 1…2 → 2: 1/3; 3…4 → 2: ∫(x-2)² = 7/3.                           (9/3 + 7/3) / 10
        (2.0, 16 / 30),
        # T=1: 1…2 → 1: 1/3; 3…4 → 1: ∫(x-1)² = 19/3.                         (9/3 + 19/3) / 10
        (1.0, 28 / 30),
    ],
)
def test_squared_error_by_hand(top: float, error: float) -> None:
    assert squared_error(positive(0, 9, 0, 1), -top, top, 2, True) == pytest.approx(error)


def test_mse_by_hand_takes_the_smallest_of_these_errors() -> None:
    assert mse(positive(0, 9, 0, 1), 2, True) == (-2.0, 2.0)


def test_squared_error_of_an_unsymmetric_grid_by_hand() -> None:
    # 2 bits for 0…3: 0, 1, 2, 3. Spread evenly, each value is off by at most half a step: 1/12 on average, inside as
    # at both ends of 0…3; in 3…4 it is clipped to 3: 1/3.
    assert squared_error(positive(1, 1, 1, 1), 0.0, 3.0, 2, False) == pytest.approx((3 / 12 + 1 / 3) / 4)


@pytest.mark.parametrize(
    ("stop", "nats"),
    [
        # Two levels, counts 6 2 1 1. All four bins: levels {6, 2} and {1, 1} → Q = 4 4 1 1, P = 6 2 1 1 of 10.
        (4, 0.6 * np.log(6 / 4) + 0.2 * np.log(2 / 4)),
        # Three: levels {6, 2}, {1} → Q = 4 4 1 of 9; the outlier joins the last bin: P = 6 2 2 of 10.
        (3, 0.6 * np.log(0.6 * 9 / 4) + 0.2 * np.log(0.2 * 9 / 4) + 0.2 * np.log(0.2 * 9)),
        # Two: each its own level → Q = 6 2 of 8; P = 6 4 of 10.
        (2, 0.6 * np.log(0.6 * 8 / 6) + 0.4 * np.log(0.4 * 8 / 2)),
    ],
)
def test_divergence_by_hand(stop: int, nats: float) -> None:
    assert divergence(np.array([6, 2, 1, 1]), 0, stop, 2) == pytest.approx(nats)


def test_entropy_by_hand_takes_the_least_divergence() -> None:
    # The three above: 0.105, 0.138 and 0.054 nats.
    assert entropy(positive(6, 2, 1, 1), 2, True) == (-2.0, 2.0)
    # 4 4 1 1 in two levels loses nothing at all; clipped to two bins it would be 5 5 instead of 4 6.
    assert entropy(positive(4, 4, 1, 1), 2, True) == (-4.0, 4.0)


def test_entropy_without_symmetry_spends_all_levels_on_the_side_where_values_are() -> None:
    # One bit is two levels, and all lie above zero: the same case as above.
    assert entropy(positive(6, 2, 1, 1), 1, False) == (0.0, 2.0)


def test_a_bin_with_nothing_but_outliers_counts_as_one_value() -> None:
    # Counts 6 2 0 1 cut to three bins: levels {6, 2}, {} → Q = 4 4 and 1 for the empty one; P = 6 2 1, both of 9.
    by_hand = 6 / 9 * np.log(6 / 4) + 2 / 9 * np.log(2 / 4)
    assert divergence(np.array([6, 2, 0, 1]), 0, 3, 2) == pytest.approx(by_hand)


def test_exact_zeros_do_not_change_what_entropy_and_mse_choose() -> None:
    assert entropy(positive(6, 2, 1, 1, zeros=1000), 2, True) == (-2.0, 2.0)
    assert mse(positive(0, 9, 0, 1, zeros=1000), 2, True) == (-2.0, 2.0)
    # As values of the first bin they would: nearly all mass lies there then.
    assert entropy(positive(1006, 2, 1, 1), 2, True) != (-4.0, 4.0)
    assert mse(positive(1000, 9, 0, 1), 2, True) == (-1.0, 1.0)


@BOTH
@EVERY
@pytest.mark.parametrize("method", METHODS)
def test_a_range_contains_zero_and_nothing_beyond_the_values(
    method: str, values: NDArray[np.float64], symmetric: bool
) -> None:
    low, high = choose(method, seen(values), bits=8, symmetric=symmetric, percent=99.9)
    wide_low, wide_high = minmax(seen(values), 8, symmetric)
    assert wide_low <= low <= 0 <= high <= wide_high
    assert low == -high or not symmetric
    assert (low, high) != (0, 0) or not values.any()


@BOTH
@EVERY
def test_minmax_and_the_whole_percentile_cover_every_value(
    values: NDArray[np.float64], symmetric: bool
) -> None:
    low, high = minmax(seen(values), 8, symmetric)
    assert low <= values.astype(np.float32).min()
    assert high >= values.astype(np.float32).max()
    assert percentile(seen(values), 8, symmetric, 100) == (low, high)


@BOTH
@EVERY
def test_the_error_mse_makes_on_the_values_is_the_least_of_all_methods(
    values: NDArray[np.float64], symmetric: bool
) -> None:
    def error(method: str) -> float:
        low, high = choose(method, seen(values), bits=8, symmetric=symmetric, percent=99.99)
        return float(np.mean((quantised(values, low, high, symmetric) - values) ** 2))

    assert error("mse") <= min(map(error, METHODS)) * 1.02 + 1e-12


@pytest.mark.parametrize("name", ["normal", "long tails", "an outlier"])
def test_mse_is_close_to_the_best_of_all_thresholds(name: str) -> None:
    values = VALUES[name]

    def error(top: float) -> float:
        return float(np.mean((quantised(values, -top, top, True) - values) ** 2))

    best = min(map(error, np.linspace(0.02, 1, 400) * np.abs(values).max()))
    assert error(mse(seen(values), 8, True)[1]) <= 1.03 * best


@BOTH
@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_a_lone_outlier_does_not_decide_the_range(method: str, symmetric: bool) -> None:
    found = choose(method, seen(VALUES["an outlier"]), bits=8, symmetric=symmetric, percent=99.99)
    assert found[1] < 12
    assert minmax(seen(VALUES["an outlier"]), 8, symmetric)[1] == pytest.approx(60)


@pytest.mark.parametrize("times", [1, 20])
def test_mse_weighs_an_outlier_against_the_steps_of_all_others(times: int) -> None:
    # n values pay (T / 127)² / 12 each, the outlier at 60 pays (60 - T)²: least where T = 60 / (1 + n / (12 · 127²)).
    values = np.append(np.tile(VALUES["normal"], times), 60.0)
    best = 60 / (1 + (len(values) - 1) / (12 * 127**2))
    assert mse(seen(values), 8, True)[1] == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize("name", ["normal", "long tails"])
def test_percentile_agrees_with_the_percentile_of_the_values(name: str) -> None:
    values = VALUES[name]
    top = percentile(seen(values), 8, True, 99.9)[1]
    assert top == pytest.approx(np.percentile(np.abs(values), 99.9), rel=0.01)
    ends = percentile(seen(values), 8, False, 99.9)
    np.testing.assert_allclose(ends, np.percentile(values, [0.05, 99.95]), rtol=0.02)
