"""Batches without end, from a position on."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import torch

from vitesse.errors import DataError
from vitesse.training.batch import Batch
from vitesse.training.source import BatchSource

# A batch, its epoch, and its number there, from 1.
_Placed = tuple[Batch, int, int]


class Feed:
    """Epoch after epoch of a source.

    Args:
        data: the source.
        batch: images of a batch.
        device: where batches are wanted.
        epoch: the epoch to begin with.
        used: how many of its batches were used before.

    Attributes:
        epoch, used: the position behind the batch that came last.
    """

    def __init__(
        self, data: BatchSource, batch: int, device: torch.device, epoch: int = 0, used: int = 0
    ) -> None:
        self.epoch, self.used = epoch, used
        self._begin = partial(self._endless, data, batch, device)
        self._batches = self._begin()
        self._ready: _Placed | None = None
        self._failed: Exception | None = None

    def next(self) -> Batch:
        """The next batch.

        Raises:
            DataError: an epoch has none.
        """
        if self._failed:
            raise self._failed
        batch, self.epoch, self.used = self._ready or next(self._batches)
        self._ready = None
        return batch

    def prepare(self) -> None:
        """Make the next batch ready, so that `next` has it at once; the position stays that of the last one.

        What fails is raised by `next`, after the step that goes on meanwhile. Where a device has no room for two
        batches, `next` makes it when the last one is gone.
        """
        try:
            self._ready = self._ready or next(self._batches)
        except torch.OutOfMemoryError:
            self._batches.close()
            self._batches = self._begin()
        except Exception as error:
            self._failed = error

    def close(self) -> None:
        """End the source's iterator, and with it the threads that it may have."""
        self._batches.close()

    def _endless(self, data: BatchSource, size: int, device: torch.device) -> Generator[_Placed, None, None]:
        epoch, used = self.epoch, self.used
        while True:
            count = 0
            for count, batch in enumerate(data.epoch(epoch, size, device), 1):
                if count > used:
                    yield batch, epoch, count
            if count == 0:
                raise DataError(
                    f"epoch {epoch} of the training data has no batch",
                    expected=f"{data.images} images in batches of {size}, or in one that is smaller",
                    cause="the source drops a last short batch although it is the only one",
                )
            epoch, used = epoch + 1, 0
