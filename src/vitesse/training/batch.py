"""What one training step is fed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Objects:
    """The labelled objects of one image; n may be 0.

    Args:
        labels: (n,) int64, class indices.
        boxes: (n, 4) float32, centre x, centre y, width, height, as shares of the image (0..1).
    """

    labels: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> Objects:
        """The same objects on `device`."""
        return Objects(self.labels.to(device, non_blocking=True), self.boxes.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Batch:
    """Images and what is known about them; `labels` for classification, `objects` for detection.

    Args:
        images: (B, 3, H, W) float32, normalised as the model wants them.
        labels: (B,) int64 class indices, or None.
        objects: one entry per image, or None.
    """

    images: Tensor
    labels: Tensor | None = None
    objects: tuple[Objects, ...] | None = None

    def __len__(self) -> int:
        """How many images."""
        return int(self.images.shape[0])

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(
            self.images.to(device, non_blocking=True),
            None if self.labels is None else self.labels.to(device, non_blocking=True),
            None if self.objects is None else tuple(one.to(device) for one in self.objects),
        )

    def part(self, start: int, stop: int) -> Batch:
        """The images `start` to `stop`, without `stop`, and what belongs to them; a view, nothing is copied."""
        return Batch(
            self.images[start:stop],
            None if self.labels is None else self.labels[start:stop],
            None if self.objects is None else self.objects[start:stop],
        )
