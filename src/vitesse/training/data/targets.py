"""The labels of all training images in flat arrays, and boxes clipped to what is visible of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vitesse.data.boxes import Placement, cxcywh_to_xyxy, xyxy_to_cxcywh
from vitesse.data.split import Truth
from vitesse.training.batch import Objects
from vitesse.training.transfer import sent


@dataclass(frozen=True, eq=False)
class FlatObjects:
    """The objects of n images, one after the other: image i has those from starts[i] to starts[i + 1], without it.

    starts: (n + 1,) int64. labels: (m,) int64. boxes: (m, 4) float32, cxcywh in shares of the input tensor, 0..1.
    """

    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]

    def of(self, images: NDArray[np.int64]) -> FlatObjects:
        """Return the objects of these images, in their order."""
        counts = self.starts[images + 1] - self.starts[images]
        starts = _starts(counts)
        chosen = np.arange(starts[-1]) + np.repeat(self.starts[images] - starts[:-1], counts)
        return FlatObjects(starts, self.labels[chosen], self.boxes[chosen])

    def image_of(self) -> NDArray[np.int64]:
        """Return the image of each object: (m,), ascending."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def with_boxes(self, boxes_cxcywh: NDArray[np.float32], visible: float) -> FlatObjects:
        """Return the objects with other boxes, clipped to the tensor.

        What has less than the share `visible` of its area (0..1) inside is dropped, and what has no area.
        """
        corners = cxcywh_to_xyxy(boxes_cxcywh)
        inside = corners.clip(0, 1)
        sides, left = corners[:, 2:] - corners[:, :2], inside[:, 2:] - inside[:, :2]
        area = left.prod(axis=1)
        kept = (area > 0) & (area >= visible * sides.prod(axis=1))
        counts = np.bincount(self.image_of()[kept], minlength=len(self.starts) - 1)
        # what lies inside keeps its numbers: corners and back would round them
        whole = (corners == inside).all(axis=1)[:, None]
        boxes = np.where(whole, boxes_cxcywh, xyxy_to_cxcywh(inside)).astype(np.float32)
        return FlatObjects(_starts(counts), self.labels[kept], boxes[kept])

    def tensors(self, device: torch.device) -> tuple[Objects, ...]:
        """Return one entry per image, on `device`: two copies in all, of which the entries are views."""
        counts = np.diff(self.starts).tolist()
        labels, boxes = sent(self.labels, device), sent(self.boxes, device)
        pairs = zip(torch.split(labels, counts), torch.split(boxes, counts), strict=True)
        return tuple(Objects(*pair) for pair in pairs)


def flat_objects(
    truths: Sequence[Truth | None],
    placements: Sequence[Placement | None],
    size: tuple[int, int],
    visible: float,
) -> tuple[FlatObjects, int]:
    """Return the objects of all images, where they come to lie in a tensor of `size` (height, width), and how many
    boxes without area, or cut off by more than `visible` leaves, were dropped.

    Crowds are left out without being counted, and images that have no placement have no objects.
    """
    height, width = size
    labels, boxes, counts = [], [], []
    for truth, placement in zip(truths, placements, strict=True):
        if truth is None or placement is None:
            counts.append(0)
            continue
        single = ~truth.iscrowd
        counts.append(int(single.sum()))
        labels.append(truth.labels[single])
        boxes.append(placement.to_input(truth.boxes_xyxy[single]) / (width, height, width, height))
    flat = FlatObjects(
        _starts(np.array(counts, np.int64)),
        np.concatenate([*labels, np.zeros(0, np.int64)]),
        xyxy_to_cxcywh(np.concatenate([*boxes, np.zeros((0, 4))]).astype(np.float32)),
    )
    clipped = flat.with_boxes(flat.boxes, visible)
    return clipped, len(flat.labels) - len(clipped.labels)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
