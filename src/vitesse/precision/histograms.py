"""How the values of a tensor are distributed, gathered one image after the other in constant memory.

The limit of a histogram is a power of two. When a larger value comes the limit doubles and bins are merged in pairs,
which is exact: the result does not depend on the order of the images, and no histogram grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ModelError
from vitesse.precision.ranges import ChannelStatistics

# On each side of zero. The limit is at most twice the largest magnitude, so at least 1024 of them are in use.
BINS = 2048
# Below this, values are as good as zero, and scaling them to bins would overflow float32.
_LEAST_LIMIT = 2.0**-100


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in bins of equal width, as many below zero as above.

    counts: (2n,) int64; bin i holds values from (i - n) * width up to, not including, (i - n + 1) * width.
    limit: n * width, in units of the tensor; above the magnitude of every value, 0 where all values are zero.
    low, high: smallest and largest value, exact.
    zeros: how many of the values are exactly 0 (also in `counts`): every grid represents them without error.
    """

    counts: NDArray[np.int64]
    limit: float
    low: float
    high: float
    zeros: int = 0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.limit / (len(self.counts) // 2)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def signed(self, *, zeros: bool = True) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return counts (2n,) and the edges (2n + 1,) between them; `zeros=False` leaves exact zeros out."""
        bins = len(self.counts) // 2
        counts = self.counts.copy()
        if not zeros:
            counts[bins] -= self.zeros
        return counts, self.width * np.arange(-bins, bins + 1, dtype=np.float64)

    def magnitudes(self, *, zeros: bool = True) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the distribution of |x|: counts (n,) and edges (n + 1,)."""
        counts, edges = self.signed(zeros=zeros)
        bins = len(counts) // 2
        return counts[bins:] + counts[:bins][::-1], edges[bins:]


@dataclass(frozen=True, eq=False)
class Observed:
    """What a pass over `images` images saw, by tensor: every method chooses its ranges from this."""

    histograms: Mapping[str, Histogram]
    channels: Mapping[str, ChannelStatistics]
    images: int


class Collector:
    """Gathers the histogram of one tensor, and statistics of its channels.

    Args:
        name: of the tensor, for the error.
        axis: of its channels; None = no statistics of channels.
    """

    def __init__(self, name: str, axis: int | None = None) -> None:
        self._name, self._axis = name, axis
        self._counts = np.zeros(2 * BINS, np.int64)
        self._limit = self._low = self._high = 0.0
        self._seen = self._zeros = 0
        self._abs_max: NDArray[np.float32] | None = None
        self._sum: NDArray[np.float64] | None = None

    def add(self, values: NDArray[np.generic]) -> None:
        """Count the values of one image.

        Raises:
            ModelError: a value is not finite.
        """
        if not values.size:
            return
        floats = np.asarray(values, np.float32)
        low, high = float(floats.min()), float(floats.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"the tensor `{self._name}` holds NaN or infinity on a calibration image",
                expected="finite activations: no range covers these",
                cause="the float model overflows, or the image is prepared wrongly",
                fix="find the first tensor that breaks: vitesse diagnose MODEL --data IMAGES",
            )
        self._low = min(self._low, low) if self._seen else low
        self._high = max(self._high, high) if self._seen else high
        self._count(floats, max(-low, high))
        self._seen += floats.size
        if self._axis is not None:
            self._add_channels(floats, self._axis)

    def histogram(self) -> Histogram:
        """Return what was gathered so far."""
        return Histogram(self._counts.copy(), self._limit, self._low, self._high, self._zeros)

    def channels(self) -> ChannelStatistics | None:
        """Return the statistics of channels; None where none were asked for or no value came."""
        if self._abs_max is None or self._sum is None:
            return None
        return ChannelStatistics(self._abs_max.copy(), self._sum * len(self._sum) / self._seen)

    def _count(self, values: NDArray[np.float32], largest: float) -> None:
        if largest == 0:
            self._zeros += values.size
            self._counts[BINS] += values.size
            return
        self._widen(largest)
        # Scaling by a power of two is exact, so a value falls into the same bin however often bins were merged.
        scaled = values.ravel() * np.float32(BINS / self._limit)
        np.floor(scaled, out=scaled)
        self._counts += np.bincount(scaled.astype(np.intp) + BINS, minlength=2 * BINS)
        self._zeros += values.size - int(np.count_nonzero(values))

    def _widen(self, largest: float) -> None:
        needed = max(2.0 ** math.frexp(largest)[1], _LEAST_LIMIT)
        if not self._limit:
            self._limit = needed
        while self._limit < needed:
            self._limit *= 2
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[BINS // 2 : BINS // 2 + BINS] = merged

    def _add_channels(self, values: NDArray[np.float32], axis: int) -> None:
        others = tuple(at for at in range(values.ndim) if at != axis % values.ndim)
        abs_max = np.maximum(-values.min(axis=others), values.max(axis=others))
        total = values.sum(axis=others, dtype=np.float64)
        if self._abs_max is None or self._sum is None:
            self._abs_max, self._sum = abs_max, total
        else:
            self._abs_max, self._sum = np.maximum(self._abs_max, abs_max), self._sum + total
