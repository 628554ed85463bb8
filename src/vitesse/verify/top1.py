"""Top-1 and top-5 accuracy against class labels."""

from __future__ import annotations

from collections.abc import Sequence

from vitesse.data.results import Classification
from vitesse.errors import DataError


def top_accuracy(results: Sequence[Classification], labels: Sequence[int]) -> dict[str, float]:
    """Return `top1` and `top5` in 0..1: how often the label is the first, or among the first five classes.

    An empty result (the model gave NaN) is wrong. With five classes or fewer, top5 is left out: it says nothing.

    Args:
        results: one per image, highest score first.
        labels: class index per image, in the same order.

    Raises:
        DataError: no image.
    """
    if not results:
        raise DataError("no image to measure top-1 on", expected="at least one labelled image")
    ranked = [result.labels[:5].tolist() for result in results]
    first = sum(row[:1] == [label] for row, label in zip(ranked, labels, strict=True))
    figures = {"top1": first / len(results)}
    if max(len(result.labels) for result in results) > 5:
        among = sum(label in row for row, label in zip(ranked, labels, strict=True))
        figures["top5"] = among / len(results)
    return figures
