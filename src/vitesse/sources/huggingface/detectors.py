"""The detectors of transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitesse.sources.huggingface.family import Family
from vitesse.spec import Decode


def _last_layer(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    outputs = model(pixel_values=images)
    return outputs.logits, outputs.pred_boxes


def _last_layer_masked(model: Any, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    outputs = model(pixel_values=images, pixel_mask=mask)
    return outputs.logits, outputs.pred_boxes


DETECTORS: tuple[Family, ...] = (
    Family("detr", "DetrForObjectDetection", Decode.DETR_SOFTMAX, _last_layer, _last_layer_masked),
)
