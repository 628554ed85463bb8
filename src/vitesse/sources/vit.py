"""The Vision Transformer of Dosovitskiy et al. (2021, arXiv:2010.11929) and its hybrids, as released for JAX.

    images ─▶ [ResNet] ─▶ patch embedding ─▶ + position ─▶ blocks ─▶ norm ─▶ pooling ─▶ [pre-logits] ─▶ head ─▶ logits

Numerics follow google-research/vision_transformer: tanh-approximated GELU, LayerNorm epsilon 1e-6, learned position
embedding, bilinearly resized with aligned corners for other image sizes. `vit_checkpoint` reads the weights.

Made to be exported: the class token carries its position already and is put in front by padding, so that the batch
size is never asked for, and after the last attention only what the head reads is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.sources.vit_resnet import ResNetStem, Size, StemConfig


class Pooling(StrEnum):
    """How the tokens become one vector."""

    TOKEN = "token"  # the class token, which stands in front of the patches
    GAP = "gap"  # the mean over all patches
    MAP = "map"  # attention of one learned probe over all patches (Zhai et al. 2022, arXiv:2106.04560)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT.

    Args:
        size: image (height, width) in pixels.
        patch: side of a patch, in pixels or, in a hybrid, in cells of the stem's feature map.
        hidden: width of the tokens; `mlp` is the hidden width of the MLPs.
        heads: attention heads, a divisor of `hidden`.
        representation: width of the tanh layer before the head ("pre_logits"); None = there is none.
        stem: the ResNet of a hybrid.
        dynamic_size: take images of any multiple of `stride`; `size` is then what the position embedding was trained
            for, and it is resized in the graph.
        uneven: parts of another size than the rest, as pruning leaves them, (name, units): "blocks.0.attention",
            "pool.attention" (heads of hidden / heads features each), "blocks.0.mlp.dense1", "pool.mlp.dense1".
    """

    size: Size
    patch: int
    hidden: int
    layers: int
    heads: int
    mlp: int
    classes: int
    pooling: Pooling = Pooling.TOKEN
    representation: int | None = None
    stem: StemConfig | None = None
    dynamic_size: bool = False
    uneven: tuple[tuple[str, int], ...] = ()

    def units(self, part: str, regular: int) -> int:
        """Return the units of a part by name: `regular`, where it is not `uneven`."""
        return dict(self.uneven).get(part, regular)

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return self.hidden // self.heads

    @property
    def stride(self) -> int:
        """Pixels per token along a side."""
        return self.patch * (self.stem.stride if self.stem else 1)

    @property
    def grid(self) -> Size:
        """Tokens along height and width; what is left of a patch at the end is not looked at."""
        height, width = (self.stem.out(side) if self.stem else side for side in self.size)
        return height // self.patch, width // self.patch

    @property
    def tokens(self) -> int:
        """Patches, plus the class token where there is one."""
        return self.grid[0] * self.grid[1] + (self.pooling is Pooling.TOKEN)


class ViT(nn.Module):
    """Images (batch, 3, height, width), normalised to −1..1 → logits (batch, classes)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ResNetStem(config.stem, config.size) if config.stem else nn.Identity()
        channels = config.stem.channels if config.stem else 3
        self.embedding = nn.Conv2d(channels, config.hidden, config.patch, config.patch)
        self.position = ResizedPosition(config) if config.dynamic_size else FixedPosition(config)
        self.blocks = nn.ModuleList(Block(config, f"blocks.{index}") for index in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, eps=1e-6)
        if config.pooling is Pooling.MAP:
            self.pool = AttentionPool(config)
        if config.representation:
            self.pre_logits = nn.Linear(config.hidden, config.representation)
        self.head = nn.Linear(config.representation or config.hidden, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        x = self.position(self.embedding(self.stem(images)))
        *first, last = self.blocks
        for block in first:
            x = block(x)
        pooled = self._pooled(last, x)
        if self.config.representation:
            pooled = torch.tanh(self.pre_logits(pooled))
        logits: Tensor = self.head(pooled)
        return logits

    def _pooled(self, last: nn.Module, x: Tensor) -> Tensor:
        """Tokens before the last block → (batch, hidden)."""
        if self.config.pooling is Pooling.TOKEN:
            # Nothing after the last attention mixes tokens, so only the class token goes on.
            return self.norm(last(x, 1)).flatten(1)
        x = self.norm(last(x))
        return self.pool(x) if self.config.pooling is Pooling.MAP else x.mean(1)


class FixedPosition(nn.Module):
    """Patches (batch, hidden, rows, columns) → tokens (batch, tokens, hidden) with their position added.

    `tokens` is (1, tokens, hidden); its first row is the class token plus its own position, where there is one.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.before = int(config.pooling is Pooling.TOKEN)
        self.tokens = nn.Parameter(torch.zeros(1, config.tokens, config.hidden))

    def forward(self, patches: Tensor) -> Tensor:
        """Return (batch, tokens, hidden)."""
        x = patches.flatten(2).transpose(1, 2)
        return (F.pad(x, (0, 0, self.before, 0)) if self.before else x) + self.tokens


class ResizedPosition(nn.Module):
    """As `FixedPosition` for any number of rows and columns: `grid` (1, hidden, rows, columns) is resized to them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.class_token = (
            nn.Parameter(torch.zeros(1, 1, config.hidden)) if config.pooling is Pooling.TOKEN else None
        )
        self.grid = nn.Parameter(torch.zeros(1, config.hidden, *config.grid))

    def forward(self, patches: Tensor) -> Tensor:
        """Return (batch, tokens, hidden)."""
        rows, columns = patches.shape[2:]
        x = (patches + resized(self.grid, (rows, columns))).flatten(2).transpose(1, 2)
        if self.class_token is None:
            return x
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)


def resized(grid: Tensor, size: Size) -> Tensor:
    """Resize position embeddings (1, hidden, rows, columns) to `size`, bilinearly, the corners staying in place.

    What the original computes by `scipy.ndimage.zoom(order=1)` when it loads a checkpoint for another resolution.
    """
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=True)


def sine_position(size: Size, hidden: int) -> Tensor:
    """Return the fixed position embedding (1, hidden, rows, columns) that big_vision calls `sincos2d`.

    Sines and cosines of the column, then of the row, a quarter of `hidden` each, at frequencies 1 … 1/10000 (Chen et
    al. 2021, arXiv:2104.02057); `hidden` is a multiple of 4.
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, hidden // 4, dtype=torch.float64)
    rows, columns = (torch.arange(side, dtype=torch.float64) * frequencies[:, None] for side in size)
    parts = [
        wave(angles).expand(-1, *size)
        for angles in (columns[:, None, :], rows[:, :, None])
        for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(parts)[None].float()


class Attention(nn.Module):
    """Multi-head attention: queries from `x` (batch, q, hidden), keys and values from `memory` (batch, k, hidden).

    `inner` is the width of all heads together: less than `hidden` where heads were pruned.
    """

    def __init__(self, hidden: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, inner or hidden
        self.query, self.key, self.value = (nn.Linear(hidden, inner) for _ in range(3))
        self.out = nn.Linear(inner, hidden)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Return (batch, q, hidden)."""

        def split(y: Tensor) -> Tensor:
            return torch.unflatten(y, 2, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        )
        merged: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return merged


class MLP(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between."""

    def __init__(self, hidden: int, mlp: int) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor shaped as `x`."""
        y: Tensor = self.dense2(F.gelu(self.dense1(x), approximate="tanh"))
        return y


def _attention(config: ViTConfig, name: str) -> Attention:
    heads = config.units(name, config.heads)
    return Attention(config.hidden, heads, heads * config.head_size)


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each added to its input. `name` is its own in the ViT."""

    def __init__(self, config: ViTConfig, name: str = "blocks.0") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden, eps=1e-6)
        self.attention = _attention(config, f"{name}.attention")
        self.norm2 = nn.LayerNorm(config.hidden, eps=1e-6)
        self.mlp = MLP(config.hidden, config.units(f"{name}.mlp.dense1", config.mlp))

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Return (batch, tokens, hidden), or of it only the `first` tokens."""
        y = self.norm1(x)
        x = x[:, :first] + self.attention(y[:, :first], y)
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """Attention of a learned probe over all tokens, then an MLP (the "MAP head")."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, config.hidden))
        self.attention = _attention(config, "pool.attention")
        self.norm = nn.LayerNorm(config.hidden, eps=1e-6)
        self.mlp = MLP(config.hidden, config.units("pool.mlp.dense1", config.mlp))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) → (batch, hidden)."""
        x = self.attention(self.probe.expand(x.shape[0], -1, -1), x)
        return (x + self.mlp(self.norm(x))).flatten(1)
