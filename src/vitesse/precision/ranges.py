"""What calibration found out about activations, and what quantising needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ChannelStatistics:
    """Per channel of one tensor, over all images, positions and tokens: largest magnitude and mean.

    The channel axis is 1 for the input of a convolution, the last one for that of a linear layer. Both (channels,).
    """

    abs_max: NDArray[np.float32]
    mean: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranges:
    """The range (low, high) of real values that each quantised tensor must cover, low <= 0 <= high.

    method: `minmax`, `entropy`, `percentile` or `mse`; images: how many were read.
    symmetric: whether ranges were chosen for a grid that is symmetric round zero (then low == -high).
    channels: of the tensors that layers read.
    """

    by_tensor: Mapping[str, tuple[float, float]]
    method: str
    images: int
    symmetric: bool
    channels: Mapping[str, ChannelStatistics] = field(default_factory=dict)
