"""Whether a release's scores are spread as the reference's are, without asking the reference about each request.

Hellinger distance of two histograms p and q over the same bins, each of sum 1:

    H(p, q) = √(1 − Σ √(pᵢ·qᵢ)),  0 for equal ones, 1 for such as share no bin

Two samples of n and m scores from one distribution have E[H²] ≈ (k − 1)/8 · (1/n + 1/m) with k bins in use
, so that a bound on H alone would cry at small samples: `excess` takes this
noise off. Hellinger and not PSI, because an empty bin makes PSI infinite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 10


def histogram(scores: Sequence[float]) -> NDArray[np.float64]:
    """Return how many scores lie in each of ten equal parts of 0..1; those outside count at the ends, NaN nowhere."""
    values = np.asarray(scores, np.float64)
    values = np.clip(values[~np.isnan(values)], 0.0, 1.0)
    return np.histogram(values, BINS, (0.0, 1.0))[0].astype(np.float64)


def hellinger(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Hellinger distance, 0..1, of two histograms of counts; 1 where one of them is empty."""
    if not one.sum() or not other.sum():
        return 1.0
    shared = float(np.sqrt((one / one.sum()) * (other / other.sum())).sum())
    return float(np.sqrt(max(0.0, 1.0 - shared)))


def excess(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the Hellinger distance, 0..1, beyond three times what two samples of these sizes would show by chance."""
    one, other = histogram(found), histogram(expected)
    if not one.sum() or not other.sum():
        return hellinger(one, other)
    used = int(np.count_nonzero(one + other))
    chance = (used - 1) / 8 * (1 / one.sum() + 1 / other.sum())
    return float(np.sqrt(max(0.0, hellinger(one, other) ** 2 - 3 * chance)))
