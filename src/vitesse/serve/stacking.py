"""Feeds of several requests laid into one array each, and outputs given back to whom they belong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitesse.backends.protocol import Tensors
from vitesse.errors import BackendError
from vitesse.serve.work import Array, Arrays, Work


class Stack:
    """Memory of one worker that batches are laid into, as large as its largest batch. Not thread-safe.

    All keys share it, because only one batch is under way at a time: images of many sizes take no more than those of
    the largest.

    Args:
        max_items: of a batch.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._bytes: dict[str, NDArray[np.uint8]] = {}

    def join(self, works: Sequence[Work]) -> Arrays:
        """Return the feeds of works of one key, in their order along the first axis.

        One work's feeds are returned as they are. Otherwise the arrays are overwritten by the next call.
        """
        if len(works) == 1:
            return works[0].feeds
        items = sum(work.items for work in works)
        joined = {name: self._array(name, array, items) for name, array in works[0].feeds.items()}
        for name, array in joined.items():
            np.concatenate([work.feeds[name] for work in works], out=array)
        return joined

    def _array(self, name: str, like: Array, items: int) -> Array:
        item_bytes = math.prod(like.shape[1:]) * like.dtype.itemsize
        kept = self._bytes.get(name)
        if kept is None or kept.size < self._max_items * item_bytes:
            self._bytes.pop(name, None)  # let go of the smaller one first
            kept = self._bytes[name] = np.empty(self._max_items * item_bytes, np.uint8)
        array: Array = kept[: items * item_bytes].view(like.dtype).reshape(items, *like.shape[1:])
        return array


def split(outputs: Tensors, counts: Sequence[int]) -> list[Arrays]:
    """Return each request's own copy of its part of the outputs; `counts` are its items, in the batch's order.

    One request gets all of every output, also of one without a batch axis.

    Raises:
        BackendError: several requests, and the first axis of an output is not their items.
    """
    if len(counts) == 1:
        return [{name: array.copy() for name, array in outputs.items()}]
    check_axis(outputs, sum(counts))
    ends = np.cumsum(counts)
    return [
        {name: array[end - count : end].copy() for name, array in outputs.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def check_axis(outputs: Tensors, items: int) -> None:
    """Raise BackendError where an output cannot be given back by item: its first axis is not the batch."""
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != items:
            raise BackendError(
                f"the output {name} has the shape {array.shape} after a batch of {items}",
                expected=f"a first axis of {items}",
                cause="the model joins the images of a batch in that output",
                fix="serve it with a batch of 1",
            )


def parts(feeds: Arrays, items: int, size: int) -> list[Arrays]:
    """Cut feeds along the first axis into pieces of at most `size` items; the pieces are views."""
    return [
        {name: array[start : start + size] for name, array in feeds.items()}
        for start in range(0, items, size)
    ]


def rejoin(pieces: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join the outputs of pieces again, in order."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
