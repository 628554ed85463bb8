"""Images without padding, for models made for padded batches: nothing of the mask is left in the graph.

These models take a mask beside the images. Where none is given they make one that is all ones, of as many rows as the
batch has, and compute with it: a graph of open batch would do the same at every call. Here the mask is made for one
image, so that everything computed from it is a constant, and no attention is told of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.sources.huggingface.tracing import traceable

# Position embeddings whose readers view them as batches: Conditional DETR and DAB-DETR in their cross-attention.
_VIEWED_BY_BATCH = ("ConditionalDetrSinePositionEmbedding", "DabDetrSinePositionEmbedding")
# Where the encoders and decoders of transformers take the mask.
_MASKS = ("attention_mask", "encoder_attention_mask", "memory_key_padding_mask")


def last_layer(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images without padding → logits and boxes of the last decoder layer; the model went through `forget_mask`."""
    mask = torch.ones(1, *images.shape[2:], dtype=torch.bool, device=images.device)
    return last_layer_masked(model, images, mask)


def last_layer_masked(model: Any, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Padded images and their mask, bool (batch, H, W), True where there is image → logits and boxes."""
    with traceable(model):
        outputs = model(pixel_values=images, pixel_mask=mask)
    return outputs.logits, outputs.pred_boxes


def forget_mask(model: Any) -> None:
    """Make the encoder and the decoder of `model`, in place, deaf to the padding mask."""
    body = model.model
    for module in body.modules():
        if type(module).__name__ in _VIEWED_BY_BATCH:
            module.register_forward_hook(_for_every_image, with_kwargs=True)
    for part in ("encoder", "decoder"):
        if hasattr(body, part):
            getattr(body, part).register_forward_pre_hook(_drop_masks, with_kwargs=True)
    if hasattr(body, "gen_encoder_output_proposals"):
        body.gen_encoder_output_proposals = _proposals_of_one(body)


def _drop_masks(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, named | {name: None for name in _MASKS if name in named}


def _for_every_image(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], position: Tensor
) -> Tensor:
    features = named["shape"] if "shape" in named else arguments[0].shape
    return position.expand(features[0], -1, -1, -1)


def _proposals_of_one(body: Any) -> Callable[..., tuple[Tensor, ...]]:
    """Make the proposals of a two-stage model for one image: without padding they are those of every image.

    Deformable DETR marks a proposal too near to the border by infinite coordinates and projects the features at once;
    LW-DETR and RF-DETR give the mark as a third tensor.
    """
    original = body.gen_encoder_output_proposals

    def proposals(features: Tensor, padding: Tensor, shapes: Any) -> tuple[Tensor, ...]:
        _, boxes, *marks = original(features[:1], padding, shapes)
        invalid = marks[0] if marks else boxes.isinf().any(dim=-1, keepdim=True)
        kept = features.masked_fill(invalid, 0.0)
        return (kept, boxes, invalid) if marks else (body.enc_output_norm(body.enc_output(kept)), boxes)

    return proposals
