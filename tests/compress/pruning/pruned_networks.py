"""Small networks of every kind that can be pruned, and random importance for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sources.detr_models import BASIC, TINY, random_detr
from vitesse.compress.importance.units import groups
from vitesse.sources import detr_checkpoint, vit_checkpoint
from vitesse.sources.detr import DETRConfig
from vitesse.sources.source import ExportOptions
from vitesse.sources.trainable import Trainable, with_weights
from vitesse.sources.vit import Pooling, ViT, ViTConfig
from vitesse.sources.vit_resnet import StemConfig

VIT = ViTConfig((16, 16), 4, 16, 3, 4, 32, 5)
DETRS = {
    "bottleneck": TINY,
    "basic": BASIC,
    "resnet50": replace(TINY, depths=(3, 4, 6, 3)),
    "resnext": replace(TINY, groups=2),
    "dc5": replace(TINY, dilation=True),
    "pre_norm": replace(TINY, pre_norm=True, encoder_layers=2),
    "learned": replace(TINY, learned_cells=6),
}
VITS = {
    "token": VIT,
    "gap": replace(VIT, pooling=Pooling.GAP, representation=8),
    "map": replace(VIT, pooling=Pooling.MAP),
    "hybrid": replace(VIT, size=(32, 32), patch=1, pooling=Pooling.GAP, stem=StemConfig(32, (1, 1))),
}
NETWORKS: dict[str, DETRConfig | ViTConfig] = {**DETRS, **VITS}


def network(kind: str) -> Trainable:
    """A network of NETWORKS with random weights."""
    config = NETWORKS[kind]
    if isinstance(config, DETRConfig):
        spec = detr_checkpoint.export_spec(config, None, ExportOptions(size=(64, 96)))
        model = random_detr(config)
        return with_weights(Trainable("detr", config, model, spec), config, model.state_dict())
    torch.manual_seed(0)
    vit = ViT(config)
    for weight in vit.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    spec = vit_checkpoint.default_spec(config.size)
    return with_weights(Trainable("vit", config, vit, spec), config, vit.state_dict())


def random_importance(trainable: Trainable, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Scores of every group, between 0.1 and 1."""
    rng = np.random.default_rng(seed)
    return {group.name: rng.uniform(0.1, 1, group.size) for group in groups(trainable)}


def answers(trainable: Trainable) -> tuple[torch.Tensor, ...]:
    """The network's answer to two images of noise, without the auxiliary outputs."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, *trainable.spec.preprocessing.size)
    with torch.no_grad():
        outputs = trainable.module(images)
    return outputs[:2] if isinstance(outputs, tuple) else (outputs,)


def close(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> bool:
    """Whether the outputs are equal but for the order of additions."""
    return all(torch.allclose(a, b, rtol=1e-4, atol=2e-5) for a, b in zip(ours, theirs, strict=True))
