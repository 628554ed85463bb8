"""What differs between the model families of transformers: which tensors are the answer, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.spec import Decode


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers with one head.

    Args:
        model_type: as `config.json` has it.
        loader: the class of transformers that loads it with its head, such as `DetrForObjectDetection`.
        decode: how its outputs are read; roles are in `spec.ROLES`.
        answer: (the loaded model, images float32 (batch, 3, H, W)) → tensors in the order of the decode's roles.
        masked: the same with a third argument, a mask bool (batch, H, W) that is True where the tensor is image
            and not padding; None where the model knows no padding.
        axes: which of batch, height, width its graph can leave open.
        stride: (the model's config) → pixels that height and width must be a multiple of.
        prepare: (the loaded model, whether its graph takes a mask) changes the model in place before tracing:
            switches off what export cannot have or need not.
        attention: "eager" where the default of transformers (one fused operator of torch, where the model can) does
            not export well; None takes the default.
        top_k: detections kept per image by `Decode.DETR_SIGMOID`; None: as many as the model has queries.
    """

    model_type: str
    loader: str
    decode: Decode
    answer: Callable[[Any, Tensor], tuple[Tensor, ...]]
    masked: Callable[[Any, Tensor, Tensor], tuple[Tensor, ...]] | None = None
    axes: frozenset[str] = frozenset({"batch"})
    stride: Callable[[Any], int] = lambda config: 1
    prepare: Callable[[Any, bool], None] = lambda model, padded: None
    attention: str | None = None
    top_k: int | None = None


class Answering(nn.Module):
    """A model of transformers that takes images and returns plain tensors."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.model = model
        self._answer = family.answer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the family's roles."""
        return self._answer(self.model, images)


class MaskedAnswering(nn.Module):
    """A model of transformers that takes images padded right and below, and how much of each is image."""

    def __init__(self, model: nn.Module, masked: Callable[[Any, Tensor, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self._masked = masked

    def forward(self, images: Tensor, valid_sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the family's roles.

        Args:
            images: float32 (batch, 3, H, W).
            valid_sizes: int64 (batch, 2), the (height, width) in pixels that each image covers.
        """
        rows = torch.arange(images.shape[2], device=images.device)[None, :, None]
        columns = torch.arange(images.shape[3], device=images.device)[None, None, :]
        mask = (rows < valid_sizes[:, 0, None, None]) & (columns < valid_sizes[:, 1, None, None])
        return self._masked(self.model, images, mask)
