"""From a distribution of values to the range an integer grid should cover: four methods.

Every method is a function of a histogram alone. `bits` is the width of the integers. `symmetric` means the grid
T / (2**(bits-1) - 1) * {-(2**(bits-1) - 1), …, 2**(bits-1) - 1} for the range (-T, T), zero point 0; otherwise the
2**bits steps lie evenly between low and high, moved so that one of them is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitesse.precision.histograms import Histogram

Range = tuple[float, float]
# Clip thresholds are tried from the largest value down to a fiftieth of it, each 4 % below the one before: losses are
# flat near their minimum, and below that the bins are too coarse to judge.
RATIO = 0.96
CANDIDATES = 97
# Low and high are improved in turn; each round starts from the best of the one before.
ROUNDS = 2


def choose(method: str, histogram: Histogram, *, bits: int, symmetric: bool, percent: float) -> Range:
    """Return the range that a method of `recipe.METHODS` chooses; `percent` is read by `percentile` only."""
    if method == "percentile":
        return percentile(histogram, bits, symmetric, percent)
    return {"minmax": minmax, "entropy": entropy, "mse": mse}[method](histogram, bits, symmetric)


def minmax(histogram: Histogram, bits: int, symmetric: bool) -> Range:
    """Cover every value; right where outliers carry meaning, and for FP8, whose steps shrink towards zero."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    return _mirrored(max(-low, high)) if symmetric else (low, high)


def percentile(histogram: Histogram, bits: int, symmetric: bool, percent: float) -> Range:
    """Cover the `percent` % of the values nearest the middle: of |x| where symmetric, else half the rest on each side.

    Exact zeros are not counted: every grid holds them, and behind a ReLU their number would decide how much of the rest
    is cut. Inside a bin values count as evenly spread, so the result is exact to a fraction of a bin.
    """
    low, high = minmax(histogram, bits, symmetric)
    if symmetric:
        return _mirrored(min(high, _quantile(*histogram.magnitudes(zeros=False), percent / 100)))
    tail = (1 - percent / 100) / 2
    counts, edges = histogram.signed(zeros=False)
    bottom, top = _quantile(counts, edges, tail), _quantile(counts, edges, 1 - tail)
    return max(low, min(bottom, 0.0)), min(high, max(top, 0.0))


def mse(histogram: Histogram, bits: int, symmetric: bool) -> Range:
    """Choose the range with the smallest `squared_error`: coarser steps against clipped values.

    Never worse than `minmax`, which is among the candidates.
    """
    return _search(histogram, bits, symmetric, lambda clip: squared_error(histogram, *clip, bits, symmetric))


def squared_error(histogram: Histogram, low: float, high: float, bits: int, symmetric: bool) -> float:
    """Return the mean of (x - Q(x))**2 on the grid of the range (low, high), in squared units of the tensor.

    The integral is exact for values spread evenly inside each bin; exact zeros cost nothing.
    """
    if not histogram.limit:
        return 0.0
    counts, edges = histogram.magnitudes(zeros=False) if symmetric else histogram.signed(zeros=False)
    step, bottom, top = _grid(low, high, bits, symmetric)
    per_bin = np.diff(_error_integral(edges, step, bottom, top))
    return float((counts * per_bin).sum() / histogram.width / histogram.total)


def entropy(histogram: Histogram, bits: int, symmetric: bool) -> Range:
    """Choose the range whose integers lose least information (Kullback-Leibler divergence).

    For a candidate the reference P is the clipped distribution, the outliers added to its last bins; Q is the same
    without outliers, merged into as many levels as the grid has and spread evenly over the bins that are not empty;
    the candidate with the smallest sum of P log(P / Q) wins. S. Migacz, "8-bit inference with TensorRT", NVIDIA GTC
    2017, S7310. Two points are our own: exact zeros are left out, as every grid holds them without loss, while their
    mass would favour ever narrower ranges; and a bin that is empty but for outliers counts as one value in Q,
    where the divergence would be infinite and one outlier could forbid every range without it.
    """
    counts, _ = histogram.magnitudes(zeros=False) if symmetric else histogram.signed(zeros=False)
    levels = 2 ** (bits - 1) if symmetric else 2**bits
    origin = 0 if symmetric else len(counts) // 2
    width = histogram.width

    def loss(clip: Range) -> float:
        start = origin if symmetric else origin + int(np.floor(clip[0] / width))
        stop = origin + int(np.ceil(clip[1] / width))
        # With no more bins than levels P and Q are the same, whatever the range: nothing could be learnt.
        return divergence(counts, start, stop, levels) if stop - start >= levels else np.inf

    return _search(histogram, bits, symmetric, loss) if width else (0.0, 0.0)


def divergence(counts: NDArray[np.int64], start: int, stop: int, levels: int) -> float:
    """Return KL(P || Q) in nats, for values clipped to bins start … stop - 1 and merged into `levels` levels."""
    inside = counts[start:stop].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    if not inside.any():
        return np.inf if clipped.any() else 0.0
    level = np.arange(len(inside)) * levels // len(inside)
    filled = inside > 0
    mass = np.bincount(level, inside, levels)
    members = np.maximum(np.bincount(level, filled, levels), 1)
    merged = np.where(filled, (mass / members)[level], 1.0)
    at = clipped > 0
    p, q = clipped[at] / clipped.sum(), merged[at] / merged[at].sum()
    return float((p * np.log(p / q)).sum())


def _search(histogram: Histogram, bits: int, symmetric: bool, loss: Callable[[Range], float]) -> Range:
    """Return the candidate with the smallest loss; of equal ones the widest."""
    widest = minmax(histogram, bits, symmetric)
    if symmetric:
        return min((_mirrored(top) for top in _candidates(widest[1], histogram.width)), key=loss)
    best = widest
    for _ in range(ROUNDS):
        best = min(((best[0], top) for top in _candidates(widest[1], histogram.width)), key=loss)
        best = min(((0.0 - bottom, best[1]) for bottom in _candidates(-widest[0], histogram.width)), key=loss)
    return best


def _candidates(most: float, width: float) -> list[float]:
    """Return clip thresholds from `most` down: it, then edges of bins."""
    bins = int(np.ceil(most / width)) if width else 0
    edges = {round(bins * RATIO**power) for power in range(CANDIDATES)} - {0, bins}
    return [most, *(edge * width for edge in sorted(edges, reverse=True))]


def _grid(low: float, high: float, bits: int, symmetric: bool) -> tuple[float, float, float]:
    """Return the step and the smallest and largest value that a quantiser's grid for the range really has."""
    if symmetric:
        most = max(-low, high)
        return most / (2 ** (bits - 1) - 1), -most, most
    step = (high - low) / (2**bits - 1)
    zero_point = round(-low / step) if step else 0
    return step, -zero_point * step, (2**bits - 1 - zero_point) * step


def _error_integral(x: NDArray[np.float64], step: float, bottom: float, top: float) -> NDArray[np.float64]:
    """Return the integral of (t - Q(t))**2 from 0 to x: step**3 / 12 for each step, a cubic beyond the grid."""
    inside = np.clip(x, bottom, top)
    periods = np.rint(inside / step) if step else inside
    rounded, clipped = inside - periods * step, x - inside
    # Products and not powers, which numpy computes twenty times slower.
    integral: NDArray[np.float64] = (rounded * rounded * rounded + clipped * clipped * clipped) / 3
    return integral + periods * (step * step * step / 12)


def _quantile(counts: NDArray[np.int64], edges: NDArray[np.float64], share: float) -> float:
    """Return the value below which `share` of the values lie; an end of the edges where there are none."""
    reached = np.cumsum(counts)
    wanted = share * reached[-1]
    at = int(np.searchsorted(reached, wanted))
    if not wanted:
        return float(edges[0])
    into = 1 - (reached[at] - wanted) / counts[at]
    return float(edges[at] + into * (edges[at + 1] - edges[at]))


def _mirrored(most: float) -> Range:
    return -most, most
