"""Which query stands for which object: the cheapest one-to-one assignment, found for many images at once.

    predictions, targets ─▶ costs, on the device ──copy──▶ host: SciPy, image by image ──▶ pairs, on the device

The costs of all images and all decoder layers are one tensor, and it crosses to the host once. The copy is begun and
waited for apart (`begin`, `Pending.pairs`), so that a GPU computes something else, such as the teacher, meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitesse.compress.distillation.assignment import solve
from vitesse.compress.distillation.overlap import generalised_iou
from vitesse.training.transfer import Arriving, fetched, sent

# What a pair costs, by part: those of DETR.
CLASS_COST, L1_COST, GIOU_COST = 1.0, 5.0, 2.0


class NotFinite(ArithmeticError):
    """A cost is NaN or infinite: the network has diverged."""


@dataclass(frozen=True)
class Pairs:
    """Who was given to whom; each (n,) int64 on the device of the costs.

    Args:
        layer: index of the decoder layer.
        image: index in the batch.
        row: the query that predicts.
        column: the target.
    """

    layer: Tensor
    image: Tensor
    row: Tensor
    column: Tensor


@dataclass(frozen=True)
class Pending:
    """Costs on their way to the host; see `begin`."""

    costs: Arriving
    columns: Sequence[int]
    device: torch.device

    def pairs(self) -> Pairs:
        """Wait for the costs and solve. Raises NotFinite where one that counts is no number."""
        found = assign(self.costs.wait().numpy(), self.columns)
        layer, image, row, column = sent(found, self.device)
        return Pairs(layer, image, row, column)


def begin(costs: Tensor, columns: Sequence[int]) -> Pending:
    """Send costs to the host without waiting for them.

    Args:
        costs: (layers, images, rows, columns) float32.
        columns: of each image, how many of the columns are targets; those behind are padding.
    """
    return Pending(fetched(costs), columns, costs.device)


def assign(costs: NDArray[np.float32], columns: Sequence[int]) -> NDArray[np.int64]:
    """Solve every image of every layer; returns (4, n): layer, image, row, column of each pair, rows ascending.

    The smaller of rows and columns is given away completely.

    Args:
        costs: (layers, images, rows, columns).
        columns: as in `begin`.

    Raises:
        NotFinite: a cost that counts is NaN or infinite.
    """
    layers, count = costs.shape[:2]
    targets = np.arange(costs.shape[3]) < np.array(columns)[:, None]
    wrong = np.argwhere(~(np.isfinite(costs) | ~targets[None, :, None]).all(axis=(2, 3)))
    if len(wrong):
        layer, image = wrong[0]
        raise NotFinite(f"a matching cost of layer {layer}, image {image} is NaN or infinite")
    # Hundreds of small problems a step: what is done for each is kept to the solver's own time.
    sizes, rows, taken = solve(costs.reshape(layers * count, *costs.shape[2:]), [*columns] * layers)
    where = np.repeat(np.indices((layers, count)).reshape(2, -1), sizes, axis=1)
    return np.concatenate([where, rows[None], taken[None]], dtype=np.int64)


def truth_costs(logits: Tensor, boxes: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """What it costs to give a query to a labelled object (DETR, section 3.1).

    Args:
        logits: (layers, images, queries, classes + 1).
        boxes: (layers, images, queries, 4) cxcywh, 0..1.
        labels: (images, objects) int64.
        places: (images, objects, 4) cxcywh, 0..1.

    Returns:
        (layers, images, queries, objects): −probability + 5 · L1 − 2 · GIoU.
    """
    chosen = labels[None, :, None].expand(len(logits), -1, logits.shape[2], -1)
    likely = logits.softmax(dim=3).gather(3, chosen)
    return box_costs(boxes, places[None]) - CLASS_COST * likely


def box_costs(boxes: Tensor, places: Tensor) -> Tensor:
    """Compare boxes (…, rows, 4) with (…, columns, 4), cxcywh: 5 · L1 − 2 · GIoU, (…, rows, columns)."""
    one, other = boxes[..., :, None, :], places[..., None, :, :]
    return L1_COST * (one - other).abs().sum(-1) - GIOU_COST * generalised_iou(one, other)
