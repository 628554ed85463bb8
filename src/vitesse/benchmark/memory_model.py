"""How much memory a batch size and a number of streams will take, from a few points that were measured.

    memory = fixed + streams × (per stream + batch × per item)

Fixed are weights, libraries and the interpreter; a stream has its context, an item its input, activations and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import DataError

# (batch, streams, memory in MB)
Known = tuple[int, int, float]


@dataclass(frozen=True)
class MemoryModel:
    """Three figures in MB (1e6 bytes), none negative.

    Args:
        error: the worst relative error, 0 and up, in predicting one known point from the others; None while the
            points only just decide the figures.
        points: how many it was fitted to.
        batch, streams: the one value that all points had, where they do not tell what another would take; 0 = any.
    """

    fixed_mb: float
    per_stream_mb: float
    per_item_mb: float
    error: float | None = None
    points: int = 0
    batch: int = 0
    streams: int = 0

    def predict_mb(self, batch: int, streams: int) -> float:
        """Return the memory of a point.

        Raises:
            DataError: only one batch size or number of streams is known, and this is another.
        """
        for name, asked, only in (("batch size", batch, self.batch), ("streams", streams, self.streams)):
            if only and asked != only:
                raise DataError(
                    f"memory at {name} {asked} from points that all have {only}",
                    expected="points of two batch sizes and of two numbers of streams",
                )
        return self.fixed_mb + streams * (self.per_stream_mb + batch * self.per_item_mb)


def fit_memory(points: Sequence[Known]) -> MemoryModel:
    """Fit by least squares without negative figures.

    Two batch sizes and two numbers of streams decide all three figures. Where all points have one number of streams,
    what a stream takes counts as fixed; where all have one batch size, what an item takes counts as the stream's.

    Raises:
        DataError: no points, or one point is all there is.
    """
    model = _fit(points)
    errors = []
    for at, (batch, streams, memory_mb) in enumerate(points):
        try:
            predicted = _fit([*points[:at], *points[at + 1 :]]).predict_mb(batch, streams)
        except DataError:  # the others do not decide it alone
            continue
        errors.append(abs(predicted - memory_mb) / memory_mb)
    return replace(model, error=max(errors, default=None))


def largest_batch(model: MemoryModel, budget_mb: float, streams: int = 1, *, at_most: int = 4096) -> int:
    """Return the largest batch size, up to `at_most`, that is predicted to fit; 0 where not even 1 does."""
    if model.predict_mb(1, streams) > budget_mb:
        return 0
    if model.per_item_mb <= 0:
        return at_most
    room = budget_mb - model.fixed_mb - streams * model.per_stream_mb
    return min(at_most, max(1, int(room / (streams * model.per_item_mb) + 1e-9)))


def _fit(points: Sequence[Known]) -> MemoryModel:
    batches, streams = {point[0] for point in points}, {point[1] for point in points}
    free = [True, len(streams) > 1, len(batches) > 1]
    rows = np.array([[1.0, count, count * batch] for batch, count, _ in points]).reshape(-1, 3)[:, free]
    if sum(free) < 2 or np.linalg.matrix_rank(rows) < sum(free):
        raise DataError(
            f"{len(points)} points do not tell fixed memory from what a batch takes: {list(points)}",
            expected="points of two batch sizes and of two numbers of streams",
            fix="measure batch 1 and 2 with one stream, and batch 1 with two",
        )
    figures = np.zeros(3)
    figures[free] = _non_negative(rows, np.array([point[2] for point in points]))
    fixed, per_stream, per_item = (float(value) for value in figures)
    only_batch = 0 if len(batches) > 1 else next(iter(batches))
    only_streams = 0 if len(streams) > 1 else next(iter(streams))
    return MemoryModel(fixed, per_stream, per_item, None, len(points), only_batch, only_streams)


def _non_negative(rows: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve non-negative least squares exactly, by trying every subset of at most three columns."""
    width = rows.shape[1]
    best, least = np.zeros(width), float(np.sum(values**2))
    for count in range(1, width + 1):
        for chosen in map(list, combinations(range(width), count)):
            solved = np.linalg.lstsq(rows[:, chosen], values, rcond=None)[0]
            left = float(np.sum((rows[:, chosen] @ solved - values) ** 2))
            if (solved >= -1e-12).all() and left < least:
                least, best = left, np.zeros(width)
                best[chosen] = np.maximum(solved, 0.0)
    return best
