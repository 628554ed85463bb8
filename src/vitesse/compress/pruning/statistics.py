"""What the normalisation of a pruned ResNet expects of its inputs, measured anew.

A FrozenBatchNorm subtracts means and divides by variances that were measured on the whole network. With channels gone,
the sums that it normalises have others; errors multiply from layer to layer, and training alone mends them slowly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitesse.sources.detr import FrozenBatchNorm
from vitesse.sources.trainable import Trainable, with_weights
from vitesse.training.batch import Batch


@torch.no_grad()
def remeasured(trainable: Trainable, batches: Sequence[Batch]) -> Trainable:
    """Return a copy whose FrozenBatchNorms hold the means and variances of these images.

    Each batch is normalised by its own statistics on its way, so that a layer is measured behind layers that are
    already right; what is kept are those of all batches together. A network without FrozenBatchNorm, or no batch:
    the copy is equal.
    """
    copy = with_weights(trainable, trainable.config, trainable.module.state_dict())
    seen: dict[FrozenBatchNorm, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, FrozenBatchNorm)
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        seen[norm].append((len(inputs[0]), mean, variance))
        _hold(norm, mean, variance)

    norms = [module for module in copy.module.modules() if isinstance(module, FrozenBatchNorm)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        for batch in batches if norms else ():
            copy.module(batch.images)
    finally:
        for handle in handles:
            handle.remove()
    for norm, parts in seen.items():
        share = torch.tensor([float(images) for images, _, _ in parts])
        share = (share / share.sum())[:, None]
        means, variances = (torch.stack(values) for values in list(zip(*parts, strict=True))[1:])
        mean = (share * means).sum(0)
        _hold(norm, mean, (share * (variances + (means - mean) ** 2)).sum(0))
    return copy


def _hold(norm: FrozenBatchNorm, mean: Tensor, variance: Tensor) -> None:
    norm.get_buffer("running_mean").copy_(mean)
    norm.get_buffer("running_var").copy_(variance)
