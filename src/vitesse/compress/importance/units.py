"""What can be taken out of a network, in groups of one kind in one place.

    DETR   backbone.0.body.conv1               channels   of the stem
           backbone.0.body.layer1.0.conv1      channels   inside a block
           backbone.0.body.layer1              residual   channels that all blocks of the stage add into
           transformer.encoder.layers.0.linear1     mlp   hidden units of a feed-forward
           transformer.decoder.layers.0.self_attn   heads      …and multihead_attn, which looks at the image
           transformer.decoder.layers          layers
           query_embed                         queries
    ViT    blocks.0.attention   heads · blocks.0.mlp.dense1   mlp · blocks   layers · pool.… where attention pools

A unit is gone when a gate in front of everything that reads it is 0. Where these gates stand, and which weights make
and read a unit, is found in the modules themselves, so that a pruned network is described as it is. The width of the
tokens is no group: LayerNorm mixes it, so that a channel of it cannot be left out without changing all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from vitesse.sources.detr import Block, Layer, MultiheadAttention, ResNet
from vitesse.sources.trainable import Trainable
from vitesse.sources.vit import MLP, Attention


class Kind(StrEnum):
    """What the units of a group are."""

    CHANNELS = "channels"
    RESIDUAL = "residual"
    MLP = "mlp"
    HEADS = "heads"
    LAYERS = "layers"
    QUERIES = "queries"


@dataclass(frozen=True)
class Group:
    """Units of one kind in one place: `size` of them, numbered from 0 in the order of the weights."""

    name: str
    kind: Kind
    size: int


@dataclass(frozen=True)
class Site:
    """A group and the modules it touches, by name.

    Args:
        gates: modules that a gate stands at; before or behind them, as the kind has it (`gating`).
        made_by: modules whose weights have one row a unit, and the BatchNorm behind each; of heads the attention,
            whose values have as many rows a head as it is wide.
        read_by: modules whose weights have one column a unit, of heads as many as it is wide.
    """

    group: Group
    gates: tuple[str, ...]
    made_by: tuple[tuple[str, str | None], ...] = ()
    read_by: tuple[str, ...] = ()


def groups(trainable: Trainable) -> tuple[Group, ...]:
    """Return all groups of a network, from its input to its output."""
    return tuple(site.group for site in sites(trainable))


def sites(trainable: Trainable) -> tuple[Site, ...]:
    """Return every group with its place in the network, from input to output."""
    module = trainable.module
    found = []
    for name, part in module.named_modules():
        if isinstance(part, ResNet):
            found += list(_resnet(part, name))
        elif isinstance(part, MultiheadAttention):
            found.append(_heads(name, part.heads, f"{name}.out_proj"))
        elif isinstance(part, Attention):
            found.append(_heads(name, part.heads, f"{name}.out"))
        elif isinstance(part, Layer):
            found.append(_mlp(name, part.linear1, "linear1", "linear2"))
        elif isinstance(part, MLP):
            found.append(_mlp(name, part.dense1, "dense1", "dense2"))
    stacks = ["blocks"] if trainable.kind == "vit" else [f"transformer.{one}.layers" for one in _STACKS]
    found += [_layers(module, stack) for stack in stacks]
    if trainable.kind == "detr":
        embedding = module.get_submodule("query_embed")
        assert isinstance(embedding, nn.Embedding)
        decoders = next(site.gates for site in found if site.group.name == stacks[-1])
        gates = (*(f"{layer}.self_attn" for layer in decoders), "")
        found.append(
            Site(
                Group("query_embed", Kind.QUERIES, embedding.num_embeddings), gates, (("query_embed", None),)
            )
        )
    return tuple(found)


_STACKS = ("encoder", "decoder")


def _resnet(body: ResNet, name: str) -> Iterator[Site]:
    """Channels of the stem, inside blocks, and of sums: a sum goes on until a block has a convolution beside it."""
    open_sum = _Sum(f"{name}.conv1", Kind.CHANNELS, body.conv1.out_channels)
    open_sum.add(f"{name}.bn1", (f"{name}.conv1", f"{name}.bn1"))
    for stage in (f"layer{number}" for number in range(1, 5)):
        for index, block in enumerate(body.get_submodule(stage).children()):
            assert isinstance(block, Block)
            at = f"{name}.{stage}.{index}"
            open_sum.read_by.append(f"{at}.conv1")
            last = f"{at}.conv{block.convolutions}", f"{at}.bn{block.convolutions}"
            if block.downsample is not None:
                open_sum.read_by.append(f"{at}.downsample.0")
                yield open_sum.site()
                open_sum = _Sum(f"{name}.{stage}", Kind.RESIDUAL, _rows(block, f"conv{block.convolutions}"))
                open_sum.made_by.append((f"{at}.downsample.0", f"{at}.downsample.1"))
            elif open_sum.kind is Kind.CHANNELS:
                open_sum.name, open_sum.kind = (
                    f"{name}.{stage}",
                    Kind.RESIDUAL,
                )  # the stem adds into the stage
            open_sum.add(at, last)
            yield from _inside(block, at)
    open_sum.read_by.append("input_proj")
    yield open_sum.site()


class _Sum:
    """Channels that are added to from several places, as they are met."""

    def __init__(self, name: str, kind: Kind, size: int) -> None:
        self.name, self.kind, self.size = name, kind, size
        self.gates: list[str] = []
        self.made_by: list[tuple[str, str | None]] = []
        self.read_by: list[str] = []

    def add(self, gate: str, maker: tuple[str, str | None]) -> None:
        self.gates.append(gate)
        self.made_by.append(maker)

    def site(self) -> Site:
        group = Group(self.name, self.kind, self.size)
        return Site(group, tuple(self.gates), tuple(self.made_by), tuple(self.read_by))


def _inside(block: Block, at: str) -> Iterator[Site]:
    for number in range(1, block.convolutions):
        group = Group(f"{at}.conv{number}", Kind.CHANNELS, _rows(block, f"conv{number}"))
        norm = f"{at}.bn{number}"
        yield Site(group, (norm,), ((group.name, norm),), (f"{at}.conv{number + 1}",))


def _rows(block: Block, name: str) -> int:
    convolution = block.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    return convolution.out_channels


def _heads(name: str, heads: int, out: str) -> Site:
    return Site(Group(name, Kind.HEADS, heads), (out,), ((name, None),), (out,))


def _mlp(name: str, made: nn.Linear, first: str, second: str) -> Site:
    group = Group(f"{name}.{first}", Kind.MLP, made.out_features)
    return Site(group, (f"{name}.{second}",), ((group.name, None),), (f"{name}.{second}",))


def _layers(module: nn.Module, stack: str) -> Site:
    layers = tuple(f"{stack}.{name}" for name, _ in module.get_submodule(stack).named_children())
    return Site(Group(stack, Kind.LAYERS, len(layers)), layers)
