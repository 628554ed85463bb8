"""Losses of a set of queries: on the objects of an image, and on the queries of a teacher.

Both supervise every decoder layer and give three parts: classes, L1 ×5 and GIoU ×2 of the boxes, each the mean over the
layers. Queries without an object count a tenth in the classes, as in DETR (Carion et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.compress.distillation.class_loss import soft_loss
from vitesse.compress.distillation.matching import (
    CLASS_COST,
    Pairs,
    Pending,
    begin,
    box_costs,
    truth_costs,
)
from vitesse.compress.distillation.overlap import generalised_iou
from vitesse.training.batch import Objects
from vitesse.training.transfer import sent

PARTS = ("class", "l1", "giou")
NO_OBJECT_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 0.1, 5.0, 2.0


@dataclass(frozen=True)
class Queries:
    """What all decoder layers say: logits (layers, images, queries, classes + 1), boxes (…, 4) cxcywh; float32.

    The last class is no-object.
    """

    logits: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> Queries:
        """Stack the outputs of a DETR that keeps its auxiliary ones."""
        logits, boxes, aux_logits, aux_boxes = (output.float() for output in outputs)
        return cls(torch.cat([aux_logits, logits[None]]), torch.cat([aux_boxes, boxes[None]]))

    @property
    def confidence(self) -> Tensor:
        """1 − probability of no-object, (layers, images, queries)."""
        return 1 - self.logits.softmax(dim=3)[..., -1]

    def for_student(self, layers: int, queries: int) -> Queries:
        """Return a teacher's answers as targets of a student with `layers` and at most `queries`.

        Layer i of n learns from the teacher's layer ⌈i · m / n⌉ of m, so that the last learns from the last: of six,
        three layers have 2, 4 and 6. Where the student has fewer queries, the surest of each layer and image remain.
        """
        own = len(self.logits)
        chosen = [-(-i * own // layers) - 1 for i in range(1, layers + 1)]
        # Not by a list, which a GPU would wait for.
        logits, boxes = (
            torch.stack([part[i] for i in chosen]).detach() for part in (self.logits, self.boxes)
        )
        if queries >= logits.shape[2]:
            return Queries(logits, boxes)
        surest = Queries(logits, boxes).confidence.topk(queries, dim=2).indices[..., None]
        return Queries(
            *(part.gather(2, surest.expand(-1, -1, -1, part.shape[3])) for part in (logits, boxes))
        )


@dataclass(frozen=True)
class Truth:
    """Labelled objects of a batch, padded to the most of any image: labels (images, n), boxes (images, n, 4) cxcywh."""

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, objects: Sequence[Objects]) -> Truth:
        """Pad the objects of each image; in a few operations, however many images there are."""
        counts = tuple(len(one.labels) for one in objects)
        labels, boxes = (torch.cat([getattr(one, name) for one in objects]) for name in ("labels", "boxes"))
        taken = np.arange(max(counts, default=0)) < np.array(counts)[:, None]
        places = sent(np.flatnonzero(taken), labels.device)
        return cls(
            labels.new_zeros(taken.size).index_copy(0, places, labels).view(taken.shape),
            boxes.new_zeros(taken.size, 4).index_copy(0, places, boxes).view(*taken.shape, 4),
            counts,
        )

    def match(self, predicted: Queries) -> Pending:
        """Begin to give every object a query of its own, in every layer."""
        costs = truth_costs(predicted.logits, predicted.boxes, self.labels, self.boxes)
        return begin(costs, self.counts)


def truth_loss(predicted: Queries, truth: Truth, pairs: Pairs) -> Mapping[str, Tensor]:
    """Return the losses "class", "l1" and "giou" on ground truth; boxes are divided by the number of objects."""
    layers, _, _, classes = predicted.logits.shape
    target = torch.full_like(predicted.logits[..., 0], classes - 1, dtype=torch.int64)
    target[pairs.layer, pairs.image, pairs.row] = truth.labels[pairs.image, pairs.column]
    weights = predicted.logits.new_ones(classes)
    weights[-1] = NO_OBJECT_WEIGHT
    boxes = predicted.boxes[pairs.layer, pairs.image, pairs.row]
    wanted = truth.boxes[pairs.image, pairs.column]
    objects = layers * max(1, sum(truth.counts))
    return {
        "class": F.cross_entropy(predicted.logits.flatten(0, 2), target.flatten(), weights),
        "l1": L1_WEIGHT * (boxes - wanted).abs().sum() / objects,
        "giou": GIOU_WEIGHT * (1 - generalised_iou(boxes, wanted)).sum() / objects,
    }


def match_teacher(student: Queries, targets: Queries) -> Pending:
    """Begin to give every target, of `Queries.for_student`, a query of the student.

    A pair costs cross-entropy of the classes, 5 · L1 and −2 · GIoU, weighed by what the target counts in the loss.
    """
    sure = targets.confidence
    # Mixed precision would multiply these in half of it, and equal queries would no longer be the cheapest.
    with torch.autocast(student.logits.device.type, enabled=False):
        crossed = -student.logits.log_softmax(dim=3) @ targets.logits.softmax(dim=3).transpose(2, 3)
    costs = CLASS_COST * _class_weight(sure)[:, :, None] * crossed
    costs = costs + sure[:, :, None] * box_costs(student.boxes, targets.boxes)
    return begin(costs, [targets.logits.shape[2]] * costs.shape[1])


def teacher_loss(
    student: Queries, targets: Queries, pairs: Pairs, temperature: float
) -> Mapping[str, Tensor]:
    """Return the losses "class", "l1" and "giou" on the teacher's queries.

    Classes: T² · KL(teacher ‖ student), weighed by confidence and a tenth of what is missing to 1; queries of the
    student that got no target learn no-object. Boxes: weighed by the confidence.
    """
    at, of = (pairs.layer, pairs.image, pairs.row), (pairs.layer, pairs.image, pairs.column)
    sure = targets.confidence[of]
    weight = _class_weight(sure)
    classes = weight * soft_loss(student.logits[at], targets.logits[of], temperature)
    # A mask and not a selection, whose size a GPU would have to tell the host first.
    free = torch.ones_like(student.logits[..., 0])
    free[at] = 0
    nothing = -(temperature**2) * (student.logits / temperature).log_softmax(dim=3)[..., -1]
    idle = free.numel() - len(pairs.row)
    boxes, wanted = student.boxes[at], targets.boxes[of]
    objects = sure.sum().clamp(min=len(student.logits))
    return {
        "class": (classes.sum() + NO_OBJECT_WEIGHT * (free * nothing).sum())
        / (weight.sum() + NO_OBJECT_WEIGHT * idle),
        "l1": L1_WEIGHT * (sure * (boxes - wanted).abs().sum(-1)).sum() / objects,
        "giou": GIOU_WEIGHT * (sure * (1 - generalised_iou(boxes, wanted))).sum() / objects,
    }


def _class_weight(confidence: Tensor) -> Tensor:
    """Return DETR's weight of a class as the teacher expects it: 1 for an object, 0.1 for none."""
    return confidence + NO_OBJECT_WEIGHT * (1 - confidence)
