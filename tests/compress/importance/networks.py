"""Tiny random networks whose weights can change, images for them, and units really cut out of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fashion import FOLDER
from sources.detr_models import TINY, random_detr
from vitesse.compress.importance.units import Group, groups
from vitesse.sources.detr import DETR, DETRConfig
from vitesse.sources.spec_file import read_spec_file
from vitesse.sources.trainable import Trainable
from vitesse.sources.vit import Pooling, ViT, ViTConfig

SIZE = (64, 64)
VIT = ViTConfig(size=(16, 16), patch=4, hidden=16, layers=3, heads=4, mlp=24, classes=10)


def tiny_detr(config: DETRConfig = TINY, size: tuple[int, int] = SIZE) -> Trainable:
    """A DETR with random weights and BatchNorm statistics, as `open_trainable` would return it."""
    module = DETR(config, keep_aux=True)
    module.load_state_dict(random_detr(config).state_dict())
    module.fix_size(size)
    spec = read_spec_file(FOLDER / "detr.toml")
    return Trainable("detr", config, module.eval(), replace(spec, labels=()))


def tiny_vit(**sizes: Any) -> Trainable:
    """A ViT with random weights; its norms are random too, so that no part of it does nothing."""
    torch.manual_seed(0)
    module = ViT(replace(VIT, **sizes))
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) / max(weight[0].numel(), 1) ** 0.5)
    return Trainable("vit", module.config, module.eval(), read_spec_file(FOLDER / "vit.toml"))


def tiny_map_vit() -> Trainable:
    """A ViT that ends in attention of a learned probe."""
    return tiny_vit(pooling=Pooling.MAP)


def noise(trainable: Trainable, count: int = 3, seed: int = 1) -> Tensor:
    """Images of the size that the tiny networks take."""
    torch.manual_seed(seed)
    return torch.randn(count, 3, *(SIZE if trainable.kind == "detr" else VIT.size))


def group_of(trainable: Trainable, name: str) -> Group:
    """The group of this name."""
    (found,) = [group for group in groups(trainable) if group.name == name]
    return found


def answers(module: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """All outputs, auxiliary ones too."""
    with torch.no_grad():
        outputs = module(images)
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def cut(trainable: Trainable, name: str, gone: list[int]) -> nn.Module:
    """A copy of the network from which units of the group were cut out by hand, tensor by tensor."""
    module = copy.deepcopy(trainable.module)
    part = module.get_submodule(name)
    parent = module.get_submodule(name.rpartition(".")[0])
    if name == "query_embed":
        take(part, "weight", 0, gone)
    elif isinstance(part, nn.ModuleList):
        for index in sorted(gone, reverse=True):
            del part[index]
    elif hasattr(part, "heads"):
        cut_heads(part, gone)
    elif isinstance(part, nn.Linear):
        take(part, "weight", 0, gone)
        take(part, "bias", 0, gone)
        take(
            parent.get_submodule({"linear1": "linear2", "dense1": "dense2"}[name.rpartition(".")[2]]),
            "weight",
            1,
            gone,
        )
    elif isinstance(part, nn.Conv2d):
        number = int(name[-1])
        cut_made(part, parent.get_submodule(f"bn{number}"), gone)
        if name.endswith("body.conv1"):
            first = parent.get_submodule("layer1.0")
            readers = [first.get_submodule("conv1"), first.get_submodule("downsample.0")]
        else:
            readers = [parent.get_submodule(f"conv{number + 1}")]
        for reader in readers:
            take(reader, "weight", 1, gone)
    else:
        cut_stage(module, name, gone)
    return module


def cut_heads(attention: nn.Module, gone: list[int]) -> None:
    """Rows of queries, keys and values, and columns of the output, of these heads."""
    packed = hasattr(attention, "in_proj_weight")
    out = attention.get_submodule("out_proj" if packed else "out")
    inner = out.get_parameter("weight").shape[1]
    width = inner // attention.heads
    rows = [head * width + at for head in gone for at in range(width)]
    take(out, "weight", 1, rows)
    if packed:
        packed_rows = [part * inner + row for part in range(3) for row in rows]
        for name in ("in_proj_weight", "in_proj_bias"):
            take(attention, name, 0, packed_rows)
        out.in_features = inner - len(rows)
    else:
        for name in ("query", "key", "value"):
            take(attention.get_submodule(name), "weight", 0, rows)
            take(attention.get_submodule(name), "bias", 0, rows)
    attention.heads -= len(gone)


def cut_stage(module: nn.Module, name: str, gone: list[int]) -> None:
    """Channels of a stage, wherever its blocks make, add or read them, and where the next stage reads them."""
    body, stage = module.get_submodule("backbone.0.body"), int(name[-1])
    blocks = list(body.get_submodule(f"layer{stage}").children())
    basic_stem = stage == 1 and blocks[0].downsample is None
    if basic_stem:
        cut_made(body.conv1, body.bn1, gone)
    for index, block in enumerate(blocks):
        last = block.convolutions
        cut_made(block.get_submodule(f"conv{last}"), block.get_submodule(f"bn{last}"), gone)
        if block.downsample is not None:
            cut_made(block.downsample[0], block.downsample[1], gone)
        if index > 0 or basic_stem:
            take(block.conv1, "weight", 1, gone)
    if stage == 4:
        take(module.get_submodule("input_proj"), "weight", 1, gone)
    else:
        following = body.get_submodule(f"layer{stage + 1}.0")
        take(following.conv1, "weight", 1, gone)
        take(following.downsample[0], "weight", 1, gone)


def cut_made(convolution: nn.Module, norm: nn.Module, gone: list[int]) -> None:
    """Outputs of a convolution, and the BatchNorm behind it."""
    take(convolution, "weight", 0, gone)
    for name in ("weight", "bias", "running_mean", "running_var"):
        kept = [index for index in range(len(norm.get_buffer(name))) if index not in gone]
        setattr(norm, name, norm.get_buffer(name)[kept])


def take(layer: nn.Module, name: str, axis: int, gone: list[int]) -> None:
    """Cut entries of a parameter along an axis."""
    weight = layer.get_parameter(name)
    kept = torch.tensor([index for index in range(weight.shape[axis]) if index not in gone])
    setattr(layer, name, nn.Parameter(weight.detach().index_select(axis, kept)))
