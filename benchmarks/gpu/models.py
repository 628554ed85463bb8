"""The models of the table with random weights: the torch module that peers run, and how its ONNX graph is made.

A ViT is traced with two blocks, whatever its depth; `repeat` then gives graph and module all their blocks, with the
same weights on both sides. Tracing all blocks would take minutes for the large ones, and a float32 file of ViT-H/14 is
larger than the 2 GB that an ONNX file holds inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.export.torch_onnx import Network
from vitesse.sources.detr import DETR, DETRConfig
from vitesse.sources.detr_checkpoint import network as detr_network
from vitesse.sources.source import ExportOptions
from vitesse.sources.vit import Attention, FixedPosition, ViT, ViTConfig
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

# What is traced: one block that is repeated, and the last, which in a ViT is cut to the class token.
TRACED_BLOCKS = 2
INPUT = "images"


@dataclass(frozen=True)
class Model:
    """A model of the table.

    Args:
        title: for the table, with the size of an image.
        size: height and width of an image, pixels.
        make: number of blocks → float32 module with random weights, the same in every process, ready to be traced.
        blocks: of the whole model; 0: it is traced as it is.
        convolutional: peers get it in channels_last.
    """

    title: str
    size: tuple[int, int]
    make: Callable[[int], Network]
    blocks: int = 0
    convolutional: bool = False


def vit(size: int, patch: int, hidden: int, heads: int) -> Callable[[int], Network]:
    return lambda blocks: _classifier(
        ViT, ViTConfig((size, size), patch, hidden, blocks, heads, 4 * hidden, 1000)
    )


class DinoMLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense2(F.gelu(self.dense1(x)))
        return y


class DinoBlock(nn.Module):
    """Pre-norm block whose two branches are scaled by channel (LayerScale; Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(hidden, eps=1e-6) for _ in range(2))
        self.attention, self.mlp = Attention(hidden, heads), DinoMLP(hidden)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(hidden)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.scale1 * self.attention(y, y)
        return x + self.scale2 * self.mlp(self.norm2(x))


class Dino(nn.Module):
    """DINOv2 (Oquab et al. 2023, arXiv:2304.07193) with a linear head on class token and mean of the patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, config.hidden, config.patch, config.patch)
        self.position = FixedPosition(config)
        self.blocks = nn.ModuleList(DinoBlock(config.hidden, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, eps=1e-6)
        self.head = nn.Linear(2 * config.hidden, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.position(self.embedding(images))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.head(torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))
        return logits


def dino(size: int, patch: int, hidden: int, heads: int) -> Callable[[int], Network]:
    return lambda blocks: _classifier(
        Dino, ViTConfig((size, size), patch, hidden, blocks, heads, 4 * hidden, 1000)
    )


def _classifier(kind: Callable[[ViTConfig], nn.Module], config: ViTConfig) -> Network:
    half = (0.5, 0.5, 0.5)
    rules = Preprocessing(config.size, mean=half, std=half)
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, INPUT, {"logits": "logits"}, rules)
    images = {INPUT: torch.zeros(2, 3, *config.size)}
    return Network(_random(lambda: kind(config)), images, ("logits",), spec, {INPUT: {0: "batch"}})


def detr(
    size: tuple[int, int], depths: tuple[int, int, int, int] = (3, 4, 6, 3), layers: int = 6
) -> Callable[[int], Network]:
    def make(_: int) -> Network:
        config = DETRConfig(
            stem=64,
            widths=(64, 128, 256, 512),
            channels=(256, 512, 1024, 2048),
            depths=depths,
            hidden=256,
            heads=8,
            feedforward=2048,
            encoder_layers=layers,
            decoder_layers=layers,
            queries=100,
            logits=92,
        )
        return detr_network(_random(lambda: DETR(config)), None, ExportOptions(size=size))

    return make


def _random(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a module by a fixed seed; positions and scales, which start at 0 and 1, get random values, too."""
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if name.endswith("position.tokens"):
            parameter.normal_(std=0.02)
        elif name.endswith(("scale1", "scale2")):
            parameter.uniform_(0.1, 1.0)
    return module


MODELS: Mapping[str, Model] = {
    "vit_b16": Model("ViT-B/16, 224×224", (224, 224), vit(224, 16, 768, 12), 12),
    "vit_l16": Model("ViT-L/16, 224×224", (224, 224), vit(224, 16, 1024, 16), 24),
    "vit_h14": Model("ViT-H/14, 224×224", (224, 224), vit(224, 14, 1280, 16), 32),
    "dinov2_b14": Model("DINOv2-B/14, 518×518", (518, 518), dino(518, 14, 768, 12), 12),
    "detr_r50": Model("DETR-R50, 800×1333", (800, 1333), detr((800, 1333)), convolutional=True),
    # For tests, and for a first look whether everything runs.
    "vit_tiny": Model("ViT with 5 small blocks, 32×32", (32, 32), vit(32, 8, 64, 4), 5),
    "dino_tiny": Model("DINOv2 with 4 small blocks, 28×28", (28, 28), dino(28, 14, 64, 4), 4),
    "detr_tiny": Model(
        "DETR with a ResNet of 8 convolutions, 64×96",
        (64, 96),
        detr((64, 96), (1, 1, 1, 1), 2),
        convolutional=True,
    ),
}
PUBLISHED = tuple(name for name in MODELS if not name.endswith("_tiny"))


def traced(model: Model) -> Network:
    """What is traced: the whole model, of a ViT two blocks."""
    return model.make(TRACED_BLOCKS)


def module_of(model: Model) -> nn.Module:
    """The whole module in float32, with the weights of the whole graph, as `repeat.repeated` gives it."""
    if not model.blocks:
        return model.make(0).module.eval().requires_grad_(False)
    whole, small = model.make(model.blocks).module, traced(model).module
    state = {name: value for name, value in small.state_dict().items() if not name.startswith("blocks.")}
    whole.load_state_dict(state, strict=False)
    first, last = small.get_submodule("blocks.0"), small.get_submodule("blocks.1")
    for at in range(model.blocks - 1):
        block = whole.get_submodule(f"blocks.{at}")
        block.load_state_dict(first.state_dict())
        for part in block.modules():
            if isinstance(part, nn.Linear):
                # Its input channels rotated, so that every copy is another matrix.
                part.weight.copy_(torch.roll(part.weight, at, 1))
    whole.get_submodule(f"blocks.{model.blocks - 1}").load_state_dict(last.state_dict())
    return whole
