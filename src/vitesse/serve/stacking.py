"""Feeds of several requests laid into one array each, and outputs given back to whom they belong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from vitesse.backends.protocol import Tensors
from vitesse.errors import BackendError
from vitesse.serve.work import Array, Arrays, Key, Work

# Keys whose arrays are kept; free image sizes stay bounded.
MOST_KEYS = 8


class Stack:
    """Arrays of one worker that batches are laid into, allocated once for each key. Not thread-safe.

    Args:
        max_items: of a batch. keys: how many sets of arrays are kept; the one used longest ago goes first.
    """

    def __init__(self, max_items: int, keys: int = MOST_KEYS) -> None:
        self._max_items, self._keys = max_items, keys
        self._kept: OrderedDict[Key, dict[str, Array]] = OrderedDict()

    def join(self, works: Sequence[Work]) -> Arrays:
        """Return the feeds of works of one key, in their order along the first axis.

        One work's feeds are returned as they are. Otherwise the arrays are overwritten by the next call of that key.
        """
        if len(works) == 1:
            return works[0].feeds
        items = sum(work.items for work in works)
        arrays = self._arrays(works[0])
        for name, array in arrays.items():
            np.concatenate([work.feeds[name] for work in works], out=array[:items])
        return {name: array[:items] for name, array in arrays.items()}

    def _arrays(self, work: Work) -> dict[str, Array]:
        key = work.key
        if key not in self._kept:
            while len(self._kept) >= self._keys:
                self._kept.popitem(last=False)
            self._kept[key] = {
                name: np.empty((self._max_items, *array.shape[1:]), array.dtype)
                for name, array in work.feeds.items()
            }
        self._kept.move_to_end(key)
        return self._kept[key]


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
