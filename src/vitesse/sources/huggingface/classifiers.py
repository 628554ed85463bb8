"""Vision Transformers of transformers that classify: one row per head class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitesse.sources.huggingface.family import Family
from vitesse.spec import Decode

_ONE_SIZE = frozenset({"batch"})
_ANY_SIZE = _ONE_SIZE | {"height", "width"}
Answer = Callable[[Any, Tensor], tuple[Tensor, ...]]


def logits(model: Any, images: Tensor) -> tuple[Tensor]:
    """Images (batch, 3, H, W) → logits (batch, classes), the head seeing the tokens it was trained on and no other."""
    return (model(images).logits,)


def logits_at_any_size(model: Any, images: Tensor) -> tuple[Tensor]:
    """As `logits`, with the position embedding interpolated where the image has another size than the checkpoint's.

    Traced with height or width open (they are symbols then, no numbers), it is interpolated always.
    """
    trained = model.config.image_size
    native = (trained, trained) if isinstance(trained, int) else tuple(trained)
    sides = tuple(images.shape[-2:])
    fixed = all(isinstance(side, int) for side in sides)
    return (model(images, interpolate_pos_encoding=not fixed or sides != native).logits,)


def _patch(config: Any) -> int:
    """Pixels that a ViT's sides must be a multiple of: what is left over would be dropped without a word."""
    return int(config.patch_size)


def _vit(
    model_type: str, loader: str, answer: Answer = logits_at_any_size, axes: frozenset[str] = _ANY_SIZE
) -> Family:
    return Family(model_type, loader, Decode.LOGITS, answer, axes=axes, stride=_patch)


def _biased(model_type: str, loader: str, stride: Callable[[Any], int] = lambda config: 1) -> Family:
    """A ViT whose attention adds a bias of relative positions, made for one size.

    torch 2.13 cannot decompose its own attention with such a bias: it is written out ("eager") and fused again in the
    graph.
    """
    return Family(model_type, loader, Decode.LOGITS, logits_at_any_size, stride=stride, attention="eager")


CLASSIFIERS: tuple[Family, ...] = (
    _vit("vit", "ViTForImageClassification"),
    _vit("deit", "DeiTForImageClassification"),
    # transformers answers with the average of the class token's and the distillation token's head
    _vit("deit", "DeiTForImageClassificationWithTeacher"),
    # DINOv2 interpolates by itself, and its head sees the mean of the patches beside the class token
    _vit("dinov2", "Dinov2ForImageClassification", logits),
    # with registers by antialiased interpolation, of which torch fixes the size in the graph
    _vit("dinov2_with_registers", "Dinov2WithRegistersForImageClassification", logits, _ONE_SIZE),
    _biased("beit", "BeitForImageClassification", _patch),
    _vit("vit_msn", "ViTMSNForImageClassification"),
    # Swin pads what its patches and windows do not divide
    _biased("swin", "SwinForImageClassification"),
    _biased("swinv2", "Swinv2ForImageClassification"),
)
