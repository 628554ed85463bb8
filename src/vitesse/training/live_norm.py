"""Norms of a ResNet that learn again, while a network is trained whose channels are no longer what they were made for.

    FrozenBatchNorm ──live_norms──▶ LiveNorm, trained ──▶ FrozenBatchNorm, with what was learned

A DETR's norms are frozen because batches of two or four images on a GPU say little of a mean. Where channels are gone
and batches are large, fixed means and variances slow the training down: every change of a layer shifts all behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.sources.detr import EPSILON, FrozenBatchNorm

# Share of a batch's statistics in the running ones, as in torch.nn.BatchNorm2d.
_MOMENTUM = 0.1
Norm = TypeVar("Norm", bound=nn.Module)
_LEARNED, _MEASURED = ("weight", "bias"), ("running_mean", "running_var")


class LiveNorm(nn.Module):
    """BatchNorm under the tensor names of a FrozenBatchNorm: by the batch in training, by running statistics else."""

    def __init__(self, frozen: FrozenBatchNorm) -> None:
        super().__init__()
        for name in _LEARNED:
            self.register_parameter(name, nn.Parameter(frozen.get_buffer(name).clone()))
        for name in _MEASURED:
            self.register_buffer(name, frozen.get_buffer(name).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor shaped as `x`, (batch, channels, height, width)."""
        weight, bias = (self.get_parameter(name) for name in _LEARNED)
        mean, variance = (self.get_buffer(name) for name in _MEASURED)
        return F.batch_norm(x, mean, variance, weight, bias, self.training, _MOMENTUM, EPSILON)

    def frozen(self) -> FrozenBatchNorm:
        """Return the norm that computes what this one does outside of training."""
        weight = self.get_parameter(_LEARNED[0])
        norm = FrozenBatchNorm(len(weight)).to(weight.device)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                norm.get_buffer(name).copy_(tensor)
        return norm


@contextmanager
def live_norms(network: nn.Module) -> Iterator[None]:
    """Within the block every FrozenBatchNorm of `network` is a LiveNorm; afterwards, frozen with what it has then."""
    for parent, name, norm in _norms(network, FrozenBatchNorm):
        setattr(parent, name, LiveNorm(norm))
    try:
        yield
    finally:
        for parent, name, live in _norms(network, LiveNorm):
            setattr(parent, name, live.frozen())


def _norms(network: nn.Module, kind: type[Norm]) -> list[tuple[nn.Module, str, Norm]]:
    """Each norm of a kind with the module that holds it and its name there."""
    return [
        (parent, name, norm)
        for parent in network.modules()
        for name, norm in parent.named_children()
        if isinstance(norm, kind)
    ]
