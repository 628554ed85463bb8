"""Vision Transformers of transformers that classify: one row per head class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitesse.sources.huggingface.family import Family
from vitesse.spec import Decode

Answer = Callable[[Any, Tensor], tuple[Tensor, ...]]


def logits(model: Any, images: Tensor) -> tuple[Tensor]:
    """Images (batch, 3, H, W) → logits (batch, classes), the head seeing the tokens it was trained on and no other."""
    return (model(images).logits,)


def logits_at_any_size(model: Any, images: Tensor) -> tuple[Tensor]:
    """As `logits`, with the position embedding interpolated where the image has another size than the checkpoint's."""
    trained = model.config.image_size
    native = (trained, trained) if isinstance(trained, int) else tuple(trained)
    return (model(images, interpolate_pos_encoding=tuple(images.shape[-2:]) != native).logits,)


def _patch(config: Any) -> int:
    """Pixels that a ViT's sides must be a multiple of: what is left over would be dropped without a word."""
    return int(config.patch_size)


def _vit(
    model_type: str, loader: str, answer: Answer = logits_at_any_size, attention: str = "sdpa"
) -> Family:
    return Family(model_type, loader, Decode.LOGITS, answer, stride=_patch, attention=attention)


def _swin(model_type: str, loader: str) -> Family:
    """Swin pads what its patches and windows do not divide."""
    return Family(model_type, loader, Decode.LOGITS, logits_at_any_size, attention="eager")


# BEiT and Swin add a bias to the scores, and torch 2.13 cannot decompose its own attention with one: theirs is written
# out ("eager"), and fused again in the graph.
CLASSIFIERS: tuple[Family, ...] = (
    _vit("vit", "ViTForImageClassification"),
    _vit("deit", "DeiTForImageClassification"),
    # transformers answers with the average of the class token's and the distillation token's head
    _vit("deit", "DeiTForImageClassificationWithTeacher"),
    # DINOv2 interpolates by itself, and its head sees the mean of the patches beside the class token
    _vit("dinov2", "Dinov2ForImageClassification", logits),
    _vit("dinov2_with_registers", "Dinov2WithRegistersForImageClassification", logits),
    _vit("beit", "BeitForImageClassification", attention="eager"),
    _vit("vit_msn", "ViTMSNForImageClassification"),
    _swin("swin", "SwinForImageClassification"),
    _swin("swinv2", "Swinv2ForImageClassification"),
)
