"""DETR of Carion et al. (2020, arXiv:2005.12872) with the state-dict names of facebookresearch/detr.

A ResNet of bottleneck blocks with frozen BatchNorm, a post-norm transformer, learned queries, and two heads. Only the
last decoder layer feeds the heads: the auxiliary heads exist for training alone, and the stack over layers with its
trailing index −1 is what some runtimes get wrong. `forward_all` keeps them, for comparison.

The image size is fixed when the model is built, so the sine position embedding is a constant.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.errors import ModelError


@dataclass(frozen=True)
class DETRConfig:
    """Sizes of a DETR. `size` is the image (height, width) in pixels, multiples of 32; `heads` is not in the shapes."""

    size: tuple[int, int]
    stem: int
    planes: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: int
    heads: int
    feedforward: int
    encoder_layers: int
    decoder_layers: int
    queries: int
    logits: int


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics: y = (x − mean) / √(var + 1e-5) · weight + bias, per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor shaped as `x`, (batch, channels, height, width)."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.get_buffer("weight"), self.get_buffer("bias"), eps=1e-5)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride), 1×1 convolutions; output has 4 · planes channels."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out = 4 * planes
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), FrozenBatchNorm(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), FrozenBatchNorm(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), FrozenBatchNorm(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), FrozenBatchNorm(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4 · planes, height / stride, width / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Images (batch, 3, H, W) → features (batch, 4 · last planes, H / 32, W / 32)."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, config.stem, 7, 2, 3, bias=False), FrozenBatchNorm(config.stem)
        channels, stages = config.stem, []
        for index, (planes, depth) in enumerate(zip(config.planes, config.depths, strict=True)):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(channels, planes, 2 if block == 0 and index > 0 else 1))
                channels = 4 * planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last stage."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


class MultiheadAttention(nn.Module):
    """Attention over (batch, tokens, hidden) with packed projection weights, named as in torch.nn."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return (batch, query tokens, hidden)."""
        projected = []
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
            y = F.linear(x, weight, bias)
            projected.append(y.view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(projected[0], projected[1], projected[2])
        merged: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return merged


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, post-norm; positions are added to queries and keys only."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(config.hidden, config.heads)
        self.linear1 = nn.Linear(config.hidden, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.hidden)
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden), nn.LayerNorm(config.hidden)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Return (batch, tokens, hidden)."""
        place = x + position
        x = self.norm1(x + self.self_attn(place, place, x))
        normed: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return normed


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, feed-forward; post-norm."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(config.hidden, config.heads)
        self.multihead_attn = MultiheadAttention(config.hidden, config.heads)
        self.linear1 = nn.Linear(config.hidden, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.hidden)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.hidden) for _ in range(3))

    def forward(self, x: Tensor, query: Tensor, memory: Tensor, place: Tensor) -> Tensor:
        """Return (batch, queries, hidden); `query` is the query embedding, `place` is memory plus position."""
        x = self.norm1(x + self.self_attn(x + query, x + query, x))
        x = self.norm2(x + self.multihead_attn(x + query, place, memory))
        normed: Tensor = self.norm3(x + self.linear2(F.relu(self.linear1(x))))
        return normed


class Stack(nn.Module):
    """Layers in a row, and a norm where the checkpoint has one (DETR: after the decoder)."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm is not None:
            self.norm = norm


class Transformer(nn.Module):
    """Encoder and decoder under the names of the checkpoint."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.encoder = Stack([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.decoder = Stack(
            [DecoderLayer(config) for _ in range(config.decoder_layers)], nn.LayerNorm(config.hidden)
        )


class BoxHead(nn.Module):
    """Three linear layers → (…, 4) boxes before the sigmoid."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 4)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, 4)."""
        raw: Tensor = self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))
        return raw


def sine_position(height: int, width: int, hidden: int) -> Tensor:
    """Sine position embedding (1, height · width, hidden), y half first (DETR, appendix A.4).

    Cell i of n sits at 2π · (i + 1) / (n + 1e-6); temperature 10000 over hidden / 2 features an axis.
    """
    frequencies = 10000.0 ** (2 * (torch.arange(hidden // 2) // 2) / (hidden // 2))

    def axis(cells: int) -> Tensor:
        angle = (torch.arange(1, cells + 1) / (cells + 1e-6) * 2 * math.pi)[:, None] / frequencies
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    y, x = axis(height)[:, None, :], axis(width)[None, :, :]
    grid = torch.cat([y.expand(-1, width, -1), x.expand(height, -1, -1)], dim=2)
    return grid.reshape(1, height * width, hidden)


class DETR(nn.Module):
    """Images (batch, 3, H, W), ImageNet-normalised → logits (batch, queries, classes + 1), boxes cxcywh in 0..1."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": ResNet(config)})])
        self.input_proj = nn.Conv2d(4 * config.planes[-1], config.hidden, 1)
        self.transformer = Transformer(config)
        self.query_embed = nn.Embedding(config.queries, config.hidden)
        self.class_embed = nn.Linear(config.hidden, config.logits)
        self.bbox_embed = BoxHead(config.hidden)
        position = sine_position(config.size[0] // 32, config.size[1] // 32, config.hidden)
        self.register_buffer("position", position, persistent=False)

    def _decoder_states(self, images: Tensor) -> list[Tensor]:
        body = self.backbone[0]["body"]  # type: ignore[index]
        memory = self.input_proj(body(images)).flatten(2).transpose(1, 2)
        position = self.get_buffer("position")
        for layer in self.transformer.encoder.layers:
            memory = layer(memory, position)
        place, query = memory + position, self.query_embed.weight.unsqueeze(0)
        x = torch.zeros_like(query).expand(images.shape[0], -1, -1)
        states = []
        for layer in self.transformer.decoder.layers:
            x = layer(x, query, memory, place)
            states.append(x)
        return states

    def _heads(self, state: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.transformer.decoder.norm(state)
        return self.class_embed(normed), self.bbox_embed(normed).sigmoid()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last decoder layer's logits and boxes."""
        return self._heads(self._decoder_states(images)[-1])

    def forward_all(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and boxes of all decoder layers, stacked in front: (layers, batch, queries, …)."""
        logits, boxes = zip(*map(self._heads, self._decoder_states(images)), strict=True)
        return torch.stack(logits), torch.stack(boxes)


def load_checkpoint(path: Path, *, size: tuple[int, int], heads: int = 8) -> DETR:
    """Build a DETR for images of `size` (height, width) from a facebookresearch/detr checkpoint.

    Raises:
        ModelError: unreadable, wants more than tensors, or keys that do not fit.
    """
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"cannot read the checkpoint {path}: {str(error).splitlines()[0]}",
            expected="a file written by torch.save holding tensors only",
            cause="the file is cut off, or its pickle wants to run code, which is refused",
        ) from error
    state = {name: tensor.float() for name, tensor in raw.get("model", raw).items()}
    model = DETR(infer_config(state, size=size, heads=heads))
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    if missing or extra or wrong:
        raise ModelError(
            f"{path} does not fit: missing {missing}, extra {extra}, other shape {wrong}",
            expected=f"the keys of {model.config}",
        )
    model.load_state_dict(state)
    return model.eval()


def infer_config(state: Mapping[str, Tensor], *, size: tuple[int, int], heads: int) -> DETRConfig:
    """Read widths and depths off the shapes; raises ModelError naming the first key that is missing."""

    def count(pattern: str) -> int:
        return len({found.group(1) for key in state if (found := re.match(pattern, key))})

    body = "backbone.0.body."
    try:
        queries, hidden = state["query_embed.weight"].shape
        stages = range(1, 5)
        return DETRConfig(
            size=size,
            stem=state[f"{body}conv1.weight"].shape[0],
            planes=tuple(state[f"{body}layer{stage}.0.conv1.weight"].shape[0] for stage in stages),
            depths=tuple(count(rf"{re.escape(body)}layer{stage}\.(\d+)\.") for stage in stages),
            hidden=hidden,
            heads=heads,
            feedforward=state["transformer.decoder.layers.0.linear1.weight"].shape[0],
            encoder_layers=count(r"transformer\.encoder\.layers\.(\d+)\."),
            decoder_layers=count(r"transformer\.decoder\.layers\.(\d+)\."),
            queries=queries,
            logits=state["class_embed.weight"].shape[0],
        )
    except KeyError as error:
        raise ModelError(
            f"the checkpoint has no key {error}", expected="the state dict of facebookresearch/detr"
        ) from error
