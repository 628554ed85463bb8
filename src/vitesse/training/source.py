"""Where batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from vitesse.training.batch import Batch


class BatchSource(Protocol):
    """Images to learn from, endlessly, epoch by epoch."""

    @property
    def images(self) -> int:
        """How many images an epoch draws from."""
        ...

    def epoch(self, index: int, batch: int, device: torch.device) -> Iterator[Batch]:
        """The batches of epoch `index` (from 0), of `batch` images each, on `device`.

        Order and augmentation are a function of the source's seed and of `index` alone, so that a resumed run
        sees what an uninterrupted one would have seen. A last short batch is dropped unless it is the only one.
        """
        ...
