"""DETR of Carion et al. (2020, arXiv:2005.12872) with the state-dict names of facebookresearch/detr.

    images ─▶ ResNet ─▶ input_proj ─▶ encoder ─▶ decoder ─▶ class_embed, bbox_embed ─▶ logits, boxes
                 └ size ─▶ position ─────┴──────────┘ └ query_embed

Only the last decoder layer feeds the heads: the auxiliary heads exist for training alone, and the stack over layers
with its trailing index −1 is what some runtimes get wrong. `keep_aux` builds them as the original does, to compare.

A model exported for one size has its position embedding baked in. For any size the position embedding and the mask of
the padding are computed from the size of each image; see `detr_position`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.sources.detr_position import LearnedPosition, SinePosition, covered_cells

BODY = "backbone.0.body."


@dataclass(frozen=True)
class DETRConfig:
    """Sizes of a DETR.

    Args:
        stem: channels of the first convolution.
        widths: channels inside the blocks of the four stages: of all convolutions of a block but the last.
        channels: output channels of the four stages.
        depths: blocks of the four stages.
        bottleneck: blocks of 1×1, 3×3 and 1×1 convolutions (ResNet-50 and larger), else of two 3×3 (18, 34).
        groups: of the 3×3 convolutions (1; ResNeXt 32).
        dilation: DC5: the last stage keeps its resolution and dilates instead.
        logits: classes and no-object.
        pre_norm: LayerNorm before attention and feed-forward instead of after, and one more after the encoder.
        learned_cells: rows and columns of a learned position embedding; 0: sine.
        uneven: parts of another size than the rest, as pruning leaves them, (name, units): a convolution
            "backbone.0.body.layer1.0.conv2" or the first one, "backbone.0.body.conv1" (channels), a stage
            "backbone.0.body.layer1" (output channels), "transformer.encoder.layers.0.linear1" (features) or
            "transformer.encoder.layers.0.self_attn" (heads of hidden / heads features each).
    """

    stem: int
    widths: tuple[int, ...]
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: int
    heads: int
    feedforward: int
    encoder_layers: int
    decoder_layers: int
    queries: int
    logits: int
    bottleneck: bool = True
    groups: int = 1
    dilation: bool = False
    pre_norm: bool = False
    learned_cells: int = 0
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
        """Pixels a feature cell, along each axis; an image that is no multiple of it gets one more cell."""
        return 16 if self.dilation else 32


# Of batch norms, as in torch.
EPSILON = 1e-5


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics: y = (x − mean) / √(var + 1e-5) · weight + bias, per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return (scale, shift) per channel in float64: y = scale · x + shift."""
        names = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (self.get_buffer(name).double() for name in names)
        scale = weight / (variance + EPSILON).sqrt()
        return scale, bias - mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor shaped as `x`, (batch, channels, height, width)."""
        scale, shift = (part.to(x.dtype)[:, None, None] for part in self.affine())
        return x * scale + shift


class Block(nn.Module):
    """1×1, 3×3, 1×1 convolutions (bottleneck) or two 3×3 (basic); the first 3×3 has the stride."""

    def __init__(self, config: DETRConfig, stage: int, index: int) -> None:
        super().__init__()
        name, regular = f"{BODY}layer{stage + 1}", (config.stem, *config.channels)
        dilated, first = config.dilation and stage == 3, index == 0
        stride = 2 if first and stage > 0 and not dilated else 1
        # The first block of a dilated stage keeps the dilation of the stage before it, as in torchvision.
        dilation = 2 if dilated and not first else 1
        out = config.units(name, config.channels[stage])
        before = f"{BODY}layer{stage}" if stage else f"{BODY}conv1"
        channels = config.units(before, regular[stage]) if first else out
        width, *more = (
            config.units(f"{name}.{index}.conv{number}", config.widths[stage])
            for number in range(1, 3 if config.bottleneck else 2)
        )
        if config.bottleneck:
            convolutions = [
                nn.Conv2d(channels, width, 1, bias=False),
                nn.Conv2d(width, more[0], 3, stride, dilation, dilation, config.groups, bias=False),
                nn.Conv2d(more[0], out, 1, bias=False),
            ]
        else:
            convolutions = [
                nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False),
                nn.Conv2d(width, out, 3, padding=1, bias=False),
            ]
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", FrozenBatchNorm(convolution.out_channels))
        self.convolutions = len(convolutions)
        self.downsample = None
        # By the regular sizes: pruning may make the two equal, and the projection is there all the same.
        if stride != 1 or (first and regular[stage] != regular[stage + 1]):
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FrozenBatchNorm(out))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels of the stage, height / stride, width / stride)."""
        y = x
        for index in range(1, self.convolutions + 1):
            y = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(y))
            y = F.relu(y) if index < self.convolutions else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Images (batch, 3, H, W) → features (batch, last channels, ⌈H / stride⌉, ⌈W / stride⌉)."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        stem = config.units(f"{BODY}conv1", config.stem)
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False), FrozenBatchNorm(stem)
        for stage, depth in enumerate(config.depths):
            blocks = (Block(config, stage, index) for index in range(depth))
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last stage."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


class MultiheadAttention(nn.Module):
    """Attention over (batch, tokens, hidden) with packed projection weights, named as in torch.nn.

    The inner width is heads · head size: less than hidden where heads were pruned.
    """

    def __init__(self, config: DETRConfig, name: str) -> None:
        super().__init__()
        self.heads = config.units(name, config.heads)
        inner = self.heads * config.head_size
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, config.hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(inner, config.hidden)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, query tokens, hidden).

        `mask` is added to the scores, float (batch, 1, 1, key tokens). A query of batch 1
        serves keys of any batch; it is repeated behind its projection, which thus can be folded to a constant.
        """
        inner, projected = self.out_proj.in_features, []
        for index, x in enumerate((query, key, value)):
            part = slice(index * inner, (index + 1) * inner)
            y = F.linear(x, self.in_proj_weight[part], self.in_proj_bias[part])
            if x.shape[0] != key.shape[0]:
                y = y.expand(key.shape[0], -1, -1)
            projected.append(y.reshape(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2))
        q, k, v = projected
        # Written out: the exporter's form of scaled_dot_product_attention reshapes the keys twice.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        mixed = (scores if mask is None else scores + mask).softmax(dim=3) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """What encoder and decoder layers share: the feed-forward, and where the norms stand."""

    def __init__(self, config: DETRConfig, name: str) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = MultiheadAttention(config, f"{name}.self_attn")
        width = config.units(f"{name}.linear1", config.feedforward)
        self.linear1 = nn.Linear(config.hidden, width)
        self.linear2 = nn.Linear(width, config.hidden)
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden), nn.LayerNorm(config.hidden)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))

    def _add(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        return x + block(norm(x)) if self.pre_norm else norm(x + block(x))


class EncoderLayer(Layer):
    """Self-attention and feed-forward; positions are added to queries and keys only."""

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Return (batch, tokens, hidden)."""

        def attend(y: Tensor) -> Tensor:
            place = y + position
            return self.self_attn(place, place, y, mask)

        x = self._add(x, self.norm1, attend)
        return self._add(x, self.norm2, self._feed_forward)


class DecoderLayer(Layer):
    """Self-attention among queries, cross-attention to the memory, feed-forward."""

    def __init__(self, config: DETRConfig, name: str) -> None:
        super().__init__(config, name)
        self.multihead_attn = MultiheadAttention(config, f"{name}.multihead_attn")
        self.norm3 = nn.LayerNorm(config.hidden)

    def forward(self, x: Tensor, query: Tensor, memory: Tensor, place: Tensor, mask: Tensor | None) -> Tensor:
        """Return (batch, queries, hidden); `place` is memory plus position."""

        def attend(y: Tensor) -> Tensor:
            return self.self_attn(y + query, y + query, y)

        def look(y: Tensor) -> Tensor:
            return self.multihead_attn(y + query, place, memory, mask)

        x = self._add(x, self.norm1, attend)
        x = self._add(x, self.norm2, look)
        return self._add(x, self.norm3, self._feed_forward)


class Encoder(nn.Module):
    """Encoder layers in a row; pre-norm layers leave their sum unnormalised, so one norm follows them."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        names = (f"transformer.encoder.layers.{index}" for index in range(config.encoder_layers))
        self.layers = nn.ModuleList(EncoderLayer(config, name) for name in names)
        self.norm = nn.LayerNorm(config.hidden) if config.pre_norm else None

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Return the memory (batch, tokens, hidden)."""
        for layer in self.layers:
            x = layer(x, position, mask)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """Decoder layers in a row and the norm in front of the heads."""

    def __init__(self, config: DETRConfig) -> None:
        super().__init__()
        names = (f"transformer.decoder.layers.{index}" for index in range(config.decoder_layers))
        self.layers = nn.ModuleList(DecoderLayer(config, name) for name in names)
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, query: Tensor, memory: Tensor, place: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Return (batch, queries, hidden) of every layer, not normalised yet; arguments as in DecoderLayer.

        `query`, the embedding of the queries, has batch 1 (what sees no image is computed once) or the images'.
        """
        states = [torch.zeros_like(query)]
        for layer in self.layers:
            states.append(layer(states[-1], query, memory, place, mask))
        return states[1:]


class BoxHead(nn.Module):
    """Three linear layers → (…, 4) boxes before the sigmoid."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden, out) for out in (hidden, hidden, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, 4)."""
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


class DETR(nn.Module):
    """Images (batch, 3, H, W), ImageNet-normalised → logits (batch, queries, classes + 1), boxes cxcywh in 0..1.

    `keep_aux`: the outputs of the other decoder layers follow, (layers − 1, batch, queries, …), made as the original
    makes them: a stack of all layers through the heads, and its last entry taken out.
    """

    def __init__(self, config: DETRConfig, *, keep_aux: bool = False) -> None:
        super().__init__()
        self.config, self.keep_aux = config, keep_aux
        cells = config.learned_cells
        position = LearnedPosition(config.hidden, cells) if cells else SinePosition(config.hidden)
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": ResNet(config)}), position])
        features = config.units(f"{BODY}layer4", config.channels[-1])
        self.input_proj = nn.Conv2d(features, config.hidden, 1)
        self.transformer = nn.ModuleDict({"encoder": Encoder(config), "decoder": Decoder(config)})
        self.query_embed = nn.Embedding(config.queries, config.hidden)
        self.class_embed = nn.Linear(config.hidden, config.logits)
        self.bbox_embed = BoxHead(config.hidden)
        self.register_buffer("position", None, persistent=False)

    def fix_size(self, size: tuple[int, int]) -> None:
        """Bake the position embedding for images of `size` (height, width) in pixels; forward takes no other."""
        device = self.query_embed.weight.device
        rows, columns = (
            torch.ones(1, -(-side // self.config.stride), dtype=torch.bool, device=device) for side in size
        )
        self.position = self.backbone[1](rows, columns).detach()

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return logits and boxes of the last decoder layer, and with `keep_aux` those of the others.

        `sizes`: int64 (batch, 2), the (height, width) in pixels that each image covers of its tensor; the rest, at the
        right and below, is zero; None: all of it. Boxes are relative to the image. The padding is masked as in the
        original: no token of it is attended to; but convolutions at the edge of the image reach into it.
        """
        encoder, decoder = self.transformer["encoder"], self.transformer["decoder"]
        features = self.backbone[0]["body"](images)  # type: ignore[index]
        position, mask = self._where(images, features, sizes)
        memory = encoder(self.input_proj(features).flatten(2).transpose(1, 2), position, mask)
        query = self.query_embed.weight[None].repeat(images.shape[0] if self.keep_aux else 1, 1, 1)
        states = decoder(query, memory, memory + position, mask)
        norm = decoder.get_submodule("norm")
        kept = torch.stack([norm(state) for state in states]) if self.keep_aux else norm(states[-1])
        logits, boxes = self.class_embed(kept), self.bbox_embed(kept).sigmoid()
        return (logits[-1], boxes[-1], logits[:-1], boxes[:-1]) if self.keep_aux else (logits, boxes)

    def _where(self, images: Tensor, features: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the position embedding and what is added to attention scores: −∞ where a key is padding."""
        if self.position is not None:
            return self.position, None
        if sizes is None:
            sizes = torch.tensor([images.shape[2:]], device=images.device)
        rows = covered_cells(features.shape[2], images.shape[2], sizes[:, 0])
        columns = covered_cells(features.shape[3], images.shape[3], sizes[:, 1])
        shown = (rows[:, :, None] & columns[:, None, :]).flatten(1)[:, None, None]
        return self.backbone[1](rows, columns), torch.zeros((), device=images.device).where(shown, -math.inf)


def fold_batch_norm(model: DETR) -> DETR:
    """Return a copy whose convolutions carry the BatchNorm behind them: (W x) · s + t = (s W) x + t."""
    folded = copy.deepcopy(model)
    for parent in list(folded.modules()):
        for (_, convolution), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, FrozenBatchNorm):
                scale, shift = norm.affine()
                old = convolution.weight.detach()
                weight = (old.double() * scale[:, None, None, None]).to(old.dtype)
                convolution.weight = nn.Parameter(weight, requires_grad=False)
                convolution.bias = nn.Parameter(shift.to(old.dtype), requires_grad=False)
                setattr(parent, name, nn.Identity())
    return folded
