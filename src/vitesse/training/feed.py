"""Batches without end, from a position on."""

from __future__ import annotations

from collections.abc import Generator

import torch

from vitesse.errors import DataError
from vitesse.training.batch import Batch
from vitesse.training.source import BatchSource


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
        self._batches = self._endless(data, batch, device)

    def next(self) -> Batch:
        """The next batch.

        Raises:
            DataError: an epoch has none.
        """
        return next(self._batches)

    def close(self) -> None:
        """End the source's iterator, and with it the threads that it may have."""
        self._batches.close()

    def _endless(self, data: BatchSource, size: int, device: torch.device) -> Generator[Batch, None, None]:
        while True:
            count = 0
            for count, batch in enumerate(data.epoch(self.epoch, size, device), 1):
                if count > self.used:
                    self.used = count
                    yield batch
            if count == 0:
                raise DataError(
                    f"epoch {self.epoch} of the training data has no batch",
                    expected=f"{data.images} images in batches of {size}, or in one that is smaller",
                    cause="the source drops a last short batch although it is the only one",
                )
            self.epoch, self.used = self.epoch + 1, 0
