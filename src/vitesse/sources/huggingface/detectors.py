"""The detectors of transformers: one row per architecture.

Each answers with the logits and boxes of its last decoder layer and nothing else, so that what only training reads
(the heads of the other layers, the proposals of the first stage) is not in the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

from torch import Tensor

from vitesse.sources.huggingface.family import Family
from vitesse.sources.huggingface.tracing import traceable
from vitesse.sources.huggingface.unpadded import forget_mask, last_layer, last_layer_masked
from vitesse.spec import Decode

# As many as the post-processing of transformers keeps where it is not told otherwise.
_KEPT = 100


def _answer(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images → logits and boxes of the last decoder layer, of a model that knows no padding."""
    with traceable(model):
        outputs = model(pixel_values=images)
    return outputs.logits, outputs.pred_boxes


def _forget_mask_unless_padded(model: Any, padded: bool) -> None:
    if not padded:
        forget_mask(model)


def _padded(model_type: str, loader: str, decode: Decode) -> Family:
    """A family that masks padding and computes its position embedding from the mask, at any size."""
    return Family(
        model_type,
        loader,
        decode,
        last_layer,
        masked=last_layer_masked,
        axes=frozenset({"batch", "height", "width"}),
        prepare=_forget_mask_unless_padded,
        top_k=_KEPT,
    )


def _fixed(model_type: str, loader: str, stride: Callable[[Any], int], top_k: int | None = None) -> Family:
    """A family that could mask padding, but whose code fixes the sizes of the feature maps when it is traced."""
    return Family(
        model_type,
        loader,
        Decode.DETR_SIGMOID,
        last_layer,
        stride=stride,
        prepare=_forget_mask_unless_padded,
        top_k=top_k,
    )


def _real_time(model_type: str, loader: str) -> Family:
    """RT-DETR and what came of it: no mask, and anchors that depend on the size."""
    return Family(
        model_type,
        loader,
        Decode.DETR_SIGMOID,
        _answer,
        stride=lambda config: max(config.feat_strides),
        prepare=_anchors_of_the_size,
    )


def _anchors_of_the_size(model: Any, padded: bool) -> None:
    """Compute anchors for the size that is exported, not for the one that the config was trained at."""
    model.config.anchor_image_size = None


def _windows(config: Any) -> int:
    """Pixels that both sides must be a multiple of for whole patches and `num_windows`² windows."""
    backbone = config.backbone_config
    return int(backbone.patch_size * backbone.num_windows)


def _windows_in_all(config: Any) -> int:
    """As `_windows`, for `num_windows` windows in the whole image."""
    backbone = config.backbone_config
    return int(backbone.patch_size * isqrt(backbone.num_windows))


DETECTORS: tuple[Family, ...] = (
    _padded("detr", "DetrForObjectDetection", Decode.DETR_SOFTMAX),
    _padded("conditional_detr", "ConditionalDetrForObjectDetection", Decode.DETR_SIGMOID),
    _padded("dab-detr", "DabDetrForObjectDetection", Decode.DETR_SIGMOID),
    _padded("table-transformer", "TableTransformerForObjectDetection", Decode.DETR_SOFTMAX),
    _fixed("deformable_detr", "DeformableDetrForObjectDetection", lambda config: 1, _KEPT),
    _fixed("lw_detr", "LwDetrForObjectDetection", _windows_in_all, _KEPT),
    _fixed("rf_detr", "RfDetrForObjectDetection", _windows),
    _real_time("rt_detr", "RTDetrForObjectDetection"),
    _real_time("rt_detr_v2", "RTDetrV2ForObjectDetection"),
    _real_time("d_fine", "DFineForObjectDetection"),
    Family(
        "yolos",
        "YolosForObjectDetection",
        Decode.DETR_SOFTMAX,
        _answer,
        stride=lambda config: int(config.patch_size),
    ),
)
