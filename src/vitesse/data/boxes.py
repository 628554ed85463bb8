"""Box formats, carried in names: cxcywh (centre, size), xywh (left top, size), xyxy (left top, right bottom)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", bound=np.floating[Any])


def cxcywh_to_xyxy(boxes: NDArray[Float]) -> NDArray[Float]:
    """Convert (…, 4) boxes; units and dtype stay."""
    half = boxes[..., 2:] / 2
    return np.concatenate((boxes[..., :2] - half, boxes[..., :2] + half), axis=-1)


def xyxy_to_cxcywh(boxes: NDArray[Float]) -> NDArray[Float]:
    """Convert (…, 4) boxes; units and dtype stay."""
    return np.concatenate(
        ((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), axis=-1, dtype=boxes.dtype
    )


def xywh_to_xyxy(boxes: NDArray[Float]) -> NDArray[Float]:
    """Convert (…, 4) boxes, COCO's format on disk, to corners; units and dtype stay."""
    return np.concatenate((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), axis=-1)


def xyxy_to_xywh(boxes: NDArray[Float]) -> NDArray[Float]:
    """Convert (…, 4) boxes to COCO's format on disk; units and dtype stay."""
    return np.concatenate((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), axis=-1)


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the input tensor.

    The image of `original` (height, width) pixels is resized to `resized` (height, width); its left top corner
    then lies at (`left`, `top`) of the tensor: negative where a crop cut pixels off. Pixel edges count, not
    centres: x = 0 is the left edge of the first column, x = width the right edge of the last.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    left: int = 0
    top: int = 0

    def covers(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the part of a tensor of `size` that the image covers, from its left top corner."""
        return min(size[0], self.resized[0] + self.top), min(size[1], self.resized[1] + self.left)

    def to_original(self, boxes_xyxy: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Map (n, 4) boxes from pixels of the tensor to pixels of the original image; nothing is clipped."""
        return ((boxes_xyxy - self._offset()) * self._factor(1)).astype(np.float32)

    def to_input(self, boxes_xyxy: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Map (n, 4) boxes from pixels of the original image to pixels of the tensor; nothing is clipped."""
        return (boxes_xyxy * self._factor(-1) + self._offset()).astype(np.float32)

    def _offset(self) -> NDArray[np.float32]:
        return np.array((self.left, self.top, self.left, self.top), np.float32)

    def _factor(self, power: int) -> NDArray[np.float32]:
        across, down = self.original[1] / self.resized[1], self.original[0] / self.resized[0]
        return np.array((across, down, across, down), np.float32) ** power
