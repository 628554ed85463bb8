"""What a student learns from, and how much each part counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitesse.errors import OutOfRange
from vitesse.training.options import TrainOptions, check_augmentation

# DeiT's distillation softens classes; queries are taught as sure as the teacher is.
_TEMPERATURES = {"vit": 3.0, "detr": 1.0}


@dataclass(frozen=True)
class DistilOptions:
    """The options of one distillation.

    Args:
        train: how long and how fast.
        labels: learn from the ground truth of the data too; False: from the teacher alone.
        temperature: logits are divided by it before teacher and student are compared, above 0; None: 3 for a ViT, 1
            for a DETR.
        truth_weight: of the losses on ground truth.
        teacher_weight: of the losses on the teacher's answers.
        feature_weight: of the loss on the teacher's tokens, where `features`.
        smoothing: of a ViT's hard labels, from 0 to below 1: this share is spread over all classes.
        features: also imitate the teacher's inner tokens, through projections that are dropped afterwards.
        augmentation: of the training images, one of AUGMENTATIONS.
        live_norms: the frozen norms of a ResNet learn too (`training.live_norm`): where its channels were cut, and a
            device sees 16 images or more at once.

    Raises:
        UsageError: a value is out of its range.
    """

    train: TrainOptions
    labels: bool = True
    temperature: float | None = None
    truth_weight: float = 1.0
    teacher_weight: float = 1.0
    feature_weight: float = 1.0
    smoothing: float = 0.1
    features: bool = False
    augmentation: str = "usual"
    live_norms: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise OutOfRange("temperature", self.temperature, expected="a number above 0, such as 1 or 3")
        for name in ("truth_weight", "teacher_weight", "feature_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OutOfRange(name, getattr(self, name), expected="0 or more")
        if not 0 <= self.smoothing < 1:
            raise OutOfRange("smoothing", self.smoothing, expected="a share from 0 to below 1")

        check_augmentation("augmentation", self.augmentation)

    def temperature_of(self, kind: str) -> float:
        """Return the temperature for a network of `kind`, "vit" or "detr"."""
        return self.temperature or _TEMPERATURES[kind]
