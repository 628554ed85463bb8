"""Intersection over union of boxes, with gradients and for many at once.

Generalised as by Rezatofighi et al. (2019, arXiv:1902.09630): IoU − (hull − union) / hull, in −1..1, so that boxes
which do not touch have a gradient as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """Compare boxes (…, 4) with boxes (…, 4), cxcywh in any unit; leading dimensions broadcast.

    Returns (…), −1..1; two boxes at one place have 1. An empty box, of no area, counts as a point.
    """
    one_area, other_area = one[..., 2] * one[..., 3], other[..., 2] * other[..., 3]
    one_least, one_most = _corners(one)
    other_least, other_most = _corners(other)
    shared = (torch.minimum(one_most, other_most) - torch.maximum(one_least, other_least)).clamp(min=0)
    sides = torch.maximum(one_most, other_most) - torch.minimum(one_least, other_least)
    # Below the area of any box that is seen, so that it changes none; it keeps 0 / 0 out of values and gradients.
    least = torch.finfo(one.dtype).tiny
    common, hull = shared[..., 0] * shared[..., 1], sides[..., 0] * sides[..., 1]
    union = one_area + other_area - common
    return common / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return left top and right bottom, (…, 2) each."""
    half = boxes[..., 2:] / 2
    return boxes[..., :2] - half, boxes[..., :2] + half
