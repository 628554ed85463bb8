"""The detectors of transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import Tensor

from vitesse.sources.huggingface.family import Family
from vitesse.sources.huggingface.unpadded import forget_mask, last_layer, last_layer_masked
from vitesse.spec import Decode

_ANY_SIZE = frozenset({"batch", "height", "width"})


def _prepare_masked(model: Any, padded: bool) -> None:
    if not padded:
        forget_mask(model)


def _masked_family(model_type: str, loader: str, decode: Decode) -> Family:
    return Family(
        model_type, loader, decode, last_layer, last_layer_masked, axes=_ANY_SIZE, prepare=_prepare_masked
    )


def _answer(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images → logits and boxes of the last decoder layer, of a model that knows no padding."""
    with _traceable(sys.modules[type(model).__module__]):
        outputs = model(pixel_values=images)
    return outputs.logits, outputs.pred_boxes


@contextmanager
def _traceable(module: ModuleType) -> Iterator[None]:
    """Give the code of a model, while it runs, a `len` and a check that can be traced with an open batch.

    Python's `len` of a tensor must be a plain number, which would fix the batch at the traced one. A check that a
    sum of shapes, made as a tensor, is what it should be has no ONNX form.
    """
    with (
        patch.object(module, "len", _length, create=True),
        patch.object(module, "torch_compilable_check", _unchecked, create=True),
    ):
        yield


def _length(thing: Any) -> Any:
    return thing.shape[0] if isinstance(thing, Tensor) else len(thing)


def _unchecked(*arguments: Any, **named: Any) -> None:
    """Check nothing."""


def _anchors_of_the_size(model: Any, padded: bool) -> None:
    """Compute anchors for the size that is exported, not for the one that the config was trained at."""
    model.config.anchor_image_size = None


def _real_time(model_type: str, loader: str) -> Family:
    return Family(
        model_type,
        loader,
        Decode.DETR_SIGMOID,
        _answer,
        axes=_ANY_SIZE,
        stride=lambda config: max(config.feat_strides),
        prepare=_anchors_of_the_size,
    )


DETECTORS: tuple[Family, ...] = (
    _masked_family("detr", "DetrForObjectDetection", Decode.DETR_SOFTMAX),
    _masked_family("conditional_detr", "ConditionalDetrForObjectDetection", Decode.DETR_SIGMOID),
    _masked_family("table-transformer", "TableTransformerForObjectDetection", Decode.DETR_SOFTMAX),
    _masked_family("deformable_detr", "DeformableDetrForObjectDetection", Decode.DETR_SIGMOID),
    _masked_family("dab-detr", "DabDetrForObjectDetection", Decode.DETR_SIGMOID),
    _real_time("rt_detr", "RTDetrForObjectDetection"),
    _real_time("rt_detr_v2", "RTDetrV2ForObjectDetection"),
    _real_time("d_fine", "DFineForObjectDetection"),
    _masked_family("rf_detr", "RfDetrForObjectDetection", Decode.DETR_SIGMOID),
    _masked_family("lw_detr", "LwDetrForObjectDetection", Decode.DETR_SIGMOID),
    Family("yolos", "YolosForObjectDetection", Decode.DETR_SOFTMAX, _answer),
)
