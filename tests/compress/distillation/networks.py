"""Small networks that teach and learn, and batches for them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from vitesse.sources.detr import DETR, DETRConfig
from vitesse.sources.trainable import Trainable
from vitesse.sources.vit import ViT, ViTConfig
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task
from vitesse.training.batch import Batch, Objects

DETR_SIZES = DETRConfig(
    stem=4,
    widths=(4, 4, 4, 4),
    channels=(8, 8, 8, 8),
    depths=(1, 1, 1, 1),
    hidden=16,
    heads=2,
    feedforward=24,
    encoder_layers=1,
    decoder_layers=3,
    queries=5,
    logits=4,
)
VIT_SIZES = ViTConfig(size=(16, 16), patch=8, hidden=16, layers=3, heads=2, mlp=24, classes=3)
SIDE = 64


def detr(seed: int = 0, **sizes: object) -> Trainable:
    """A random detector of three classes for images of 64×64."""
    torch.manual_seed(seed)
    config = replace(DETR_SIZES, **sizes)
    module = DETR(config, keep_aux=True)
    module.fix_size((SIDE, SIDE))
    spec = ModelSpec(
        Task.DETECTION,
        Decode.DETR_SOFTMAX,
        "images",
        {"logits": "logits", "boxes": "boxes"},
        Preprocessing((SIDE, SIDE)),
        labels=("ant", "bee", "cow"),
    )
    return Trainable("detr", config, module, spec)


def vit(seed: int = 0, **sizes: object) -> Trainable:
    """A random classifier of three classes for images of 16×16."""
    torch.manual_seed(seed)
    config = replace(VIT_SIZES, **sizes)
    module = ViT(config)
    with torch.no_grad():
        module.position.tokens.normal_()
    spec = ModelSpec(
        Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, Preprocessing(config.size)
    )
    return Trainable("vit", config, module, spec)


def twin(trainable: Trainable) -> Trainable:
    """The same network with weights of its own."""
    return replace(trainable, module=copy.deepcopy(trainable.module))


def images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def scenes(counts: tuple[int, ...] = (2, 0, 3)) -> Batch:
    """Images for `detr` with as many objects as `counts` says."""
    generator = torch.Generator().manual_seed(1)
    objects = tuple(
        Objects(
            torch.randint(3, (count,), generator=generator),
            0.2 + 0.3 * torch.rand(count, 4, generator=generator),
        )
        for count in counts
    )
    return Batch(images(len(counts), SIDE), objects=objects)


def pictures(count: int = 4) -> Batch:
    """Images for `vit` with a class each."""
    return Batch(images(count, 16), labels=torch.arange(count) % 3)
