"""Which tensors change together when units are cut, by the dependency graph of Torch-Pruning.

The graph is found by tracing the network once: it knows that a channel of a residual sum is written by the last
convolution of every block of the stage and read by the first of every later one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn

from vitesse.sources.detr import DETR, FrozenBatchNorm
from vitesse.sources.trainable import Trainable

# Cells of the feature map that DETR is traced with: dependencies do not depend on the size of the image.
_TRACED_CELLS = 2


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that a unit is written by (one of its outputs) or read by (one of its inputs)."""

    name: str
    writes: bool


class DependencyGraph:
    """A copy of a network to cut channels and features out of; the original is left as it is."""

    def __init__(self, trainable: Trainable) -> None:
        self.module = copy.deepcopy(trainable.module)
        size = trainable.spec.preprocessing.size
        if isinstance(self.module, DETR):
            side = _TRACED_CELLS * self.module.config.stride
            size = (side, side)
            self.module.fix_size(size)
        self._graph = torch_pruning.DependencyGraph().build_dependency(
            self.module,
            torch.zeros(1, 3, *size),
            customized_pruners={FrozenBatchNorm: _FrozenBatchNormPruner()},
            verbose=False,
        )
        self._names = {module: name for name, module in self.module.named_modules()}

    def layers(self, root: str) -> tuple[Layer, ...]:
        """Return all layers that the outputs of the layer `root` change, itself first."""
        found = (Layer(self._names[target], writes) for target, writes in self._touched(root))
        return tuple(dict.fromkeys(found))

    def cut(self, root: str, units: Sequence[int]) -> None:
        """Take outputs of the layer `root` away, and all that is written or read with them."""
        self._group(root, units).prune()

    def _touched(self, root: str) -> list[tuple[nn.Module, bool]]:
        writers = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
        return [
            (step.dep.target.module, step.dep.handler in writers)
            for step in self._group(root, [0])
            if isinstance(step.dep.target.module, nn.Conv2d | nn.Linear)
        ]

    def _group(self, root: str, units: Sequence[int]) -> Any:
        module = self.module.get_submodule(root)
        convolution = isinstance(module, nn.Conv2d)
        cutter: Callable[..., Any] = (
            torch_pruning.prune_conv_out_channels if convolution else torch_pruning.prune_linear_out_channels
        )
        return self._graph.get_pruning_group(module, cutter, idxs=list(units))


class _FrozenBatchNormPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """How Torch-Pruning cuts a BatchNorm that consists of buffers."""

    def prune_out_channels(self, layer: FrozenBatchNorm, idxs: Sequence[int]) -> nn.Module:
        """Take the channels `idxs` out of all four buffers."""
        kept = torch.ones(self.get_out_channels(layer), dtype=torch.bool)
        kept[list(idxs)] = False
        for name, buffer in list(layer.named_buffers()):
            layer.register_buffer(name, buffer[kept])
        return layer

    def get_out_channels(self, layer: FrozenBatchNorm) -> int:
        """Return the channels."""
        return layer.get_buffer("running_mean").numel()

    prune_in_channels = prune_out_channels
    get_in_channels = get_out_channels
