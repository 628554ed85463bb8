"""What differs between the model families of transformers: which tensors are the answer, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitesse.spec import Decode


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    Args:
        model_type: as `config.json` has it.
        loader: the class of transformers that loads it with its head, such as `DetrForObjectDetection`.
        decode: how its outputs are read; roles are in `spec.ROLES`.
        answer: (the loaded model, images float32 (batch, 3, H, W)) → tensors in the order of the decode's roles.
        axes: which of batch, height, width its graph can leave open.
        stride: dynamic height and width must be multiples of it, pixels.
        prepare: changes the loaded model in place before tracing (switches off what export cannot have).
    """

    model_type: str
    loader: str
    decode: Decode
    answer: Callable[[Any, Tensor], tuple[Tensor, ...]]
    axes: frozenset[str] = frozenset({"batch"})
    stride: int = 1
    prepare: Callable[[Any], None] = lambda model: None


class Answering(nn.Module):
    """A model of transformers that takes images and returns plain tensors."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.model = model
        self._answer = family.answer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the family's roles."""
        return self._answer(self.model, images)
