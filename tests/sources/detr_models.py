"""Tiny DETRs with random weights and random BatchNorm statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitesse.sources.detr import DETR, DETRConfig, FrozenBatchNorm

TINY = DETRConfig(
    stem=8,
    widths=(4, 8, 16, 32),
    channels=(16, 32, 64, 128),
    depths=(1, 1, 1, 1),
    hidden=32,
    heads=4,
    feedforward=48,
    encoder_layers=1,
    decoder_layers=3,
    queries=5,
    logits=4,
)
BASIC = replace(TINY, widths=(8, 16, 32, 64), channels=(8, 16, 32, 64), depths=(1, 2, 1, 2), bottleneck=False)


def random_detr(config: DETRConfig = TINY, seed: int = 0) -> DETR:
    """A model in evaluation mode whose outputs differ from query to query and from image to image."""
    torch.manual_seed(seed)
    model = DETR(config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm):
            for buffer in module.buffers():
                buffer.copy_(0.5 + torch.rand_like(buffer))
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.LayerNorm):
                weight.copy_((name == "weight") + 0.2 * torch.randn_like(weight))
            elif weight.ndim > 1 and not isinstance(module, torch.nn.Embedding):
                weight.copy_(1.5 * torch.randn_like(weight) / weight[0].numel() ** 0.5)
    return model


def save(path: Path, model: DETR, **beside: Any) -> Path:
    """Write the checkpoint as the original's training program does; `beside` are further entries."""
    torch.save({"model": model.state_dict(), **beside}, path)
    return path


def padded(sizes: list[tuple[int, int]], canvas: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Noise images of `sizes` (height, width), zero to the right and below."""
    images = torch.zeros(len(sizes), 3, *canvas)
    torch.manual_seed(seed)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images
