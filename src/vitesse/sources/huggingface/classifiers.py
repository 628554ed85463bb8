"""Vision Transformers of transformers that classify: one row per head class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitesse.sources.huggingface.family import Family
from vitesse.spec import Decode


def logits(model: Any, images: Tensor) -> tuple[Tensor]:
    """Images (batch, 3, H, W) → logits (batch, classes), the head seeing the tokens it was trained on and no other."""
    return (model(images).logits,)


def logits_at_any_size(model: Any, images: Tensor) -> tuple[Tensor]:
    """As `logits`, with the position embedding interpolated where the image has another size than the checkpoint's."""
    trained = model.config.image_size
    native = (trained, trained) if isinstance(trained, int) else tuple(trained)
    return (model(images, interpolate_pos_encoding=tuple(images.shape[-2:]) != native).logits,)


def _classifier(model_type: str, loader: str, answer: Any = logits_at_any_size) -> Family:
    return Family(model_type, loader, Decode.LOGITS, answer)


CLASSIFIERS: tuple[Family, ...] = (
    _classifier("vit", "ViTForImageClassification"),
    _classifier("deit", "DeiTForImageClassification"),
    # transformers answers with the average of the class token's and the distillation token's head
    _classifier("deit", "DeiTForImageClassificationWithTeacher"),
    # DINOv2 interpolates by itself, and its head sees the mean of the patches beside the class token
    _classifier("dinov2", "Dinov2ForImageClassification", logits),
    _classifier("dinov2_with_registers", "Dinov2WithRegistersForImageClassification", logits),
    _classifier("beit", "BeitForImageClassification"),
    _classifier("vit_msn", "ViTMSNForImageClassification"),
    _classifier("swin", "SwinForImageClassification"),
    _classifier("swinv2", "Swinv2ForImageClassification"),
)
