"""The models that peers are compared on: Vitesse's own torch definitions, with random weights from a fixed seed.

The torch candidates run the very module that the ONNX file is exported from (BatchNorm folded, size fixed), so that no
candidate is given more work than another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from export_detr import random_checkpoint
from PIL import Image

from vitesse.export.torch_onnx import Network
from vitesse.sources.detr_checkpoint import load_detr
from vitesse.sources.detr_checkpoint import network as detr_network
from vitesse.sources.source import ExportOptions
from vitesse.sources.vit import ViT, ViTConfig
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

IMAGES = 16


@dataclass(frozen=True)
class PeerModel:
    """What is compared: a title, the image (height, width), the network, and its heads and width for optimisers.

    `make` takes a folder to work in and how it is exported, and of some models how many layers they have.
    """

    title: str
    size: tuple[int, int]
    make: Callable[..., Network]
    heads: int
    hidden: int

    @property
    def options(self) -> ExportOptions:
        """How the ONNX file is exported: a free batch, the size fixed."""
        return ExportOptions(size=self.size)


def vit_b16(_: Path, options: ExportOptions, layers: int = 12) -> Network:
    """Make ViT-B/16 of 1,000 classes, or the first of its layers."""
    half = (0.5, 0.5, 0.5)
    rules = Preprocessing((224, 224), mean=half, std=half)
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, rules)
    torch.manual_seed(0)
    module = ViT(ViTConfig((224, 224), 16, 768, layers, 12, 3072, 1000))
    images = {"images": torch.zeros(2, 3, 224, 224)}
    return Network(module.eval().requires_grad_(False), images, ("logits",), spec, {"images": {0: "batch"}})


def detr_r50(folder: Path, options: ExportOptions) -> Network:
    """Make DETR-R50 for images of the options' size, without its auxiliary heads."""
    model = load_detr(random_checkpoint(folder / "detr_r50.pth"))
    # Random logits name no object with any certainty; without detections there is nothing that INT8 could agree with.
    with torch.no_grad():
        model.class_embed.weight *= 100
        model.class_embed.bias[-1] = -1000
    return detr_network(model, None, options)


MODELS: Mapping[str, PeerModel] = {
    "vit_b16": PeerModel("ViT-B/16, 224×224", (224, 224), vit_b16, heads=12, hidden=768),
    "detr_r50": PeerModel("DETR-R50, 480×640", (480, 640), detr_r50, heads=8, hidden=256),
}


def random_images(folder: Path, size: tuple[int, int]) -> Path:
    """Write images of smoothed noise, for speed does not depend on what they show."""
    folder.mkdir()
    random = np.random.default_rng(0)
    height, width = size
    for number in range(IMAGES):
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:02}.png")
    return folder
