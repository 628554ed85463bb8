"""Which network learns: one that exists, one cut out of the teacher, or a new one like it.

FOLDER, detr.pth, vit.npz        its own weights
cut:decoder_layers=3             the teacher with fewer layers or queries, its weights taken over, the first ones
like:hidden=64,mlp=256           the teacher's architecture in other sizes, random weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vitesse.errors import UsageError
from vitesse.sources.detr import DETR, Block, DETRConfig
from vitesse.sources.opening import is_saved
from vitesse.sources.source import Given
from vitesse.sources.trainable import Trainable, open_trainable, with_weights
from vitesse.sources.vit import ViT, ViTConfig

# What can be cut off without a choice of channels, which is pruning's; and the sizes a new network may have.
_CUT = {"detr": ("encoder_layers", "decoder_layers", "queries"), "vit": ("layers",)}
_LIKE = {
    "detr": (*_CUT["detr"], "stem", "widths", "channels", "depths", "hidden", "heads", "feedforward"),
    "vit": (*_CUT["vit"], "patch", "hidden", "heads", "mlp"),
}
_STAGED, _STAGES = ("widths", "channels", "depths"), 4
# A random block of a ResNet adds this share of what it computes: without a BatchNorm that learns, sums would grow.
_RESIDUAL_SHARE = 0.25
_KINDS = {"detr": "a DETR, which detects", "vit": "a ViT, which classifies"}

Sizes = Mapping[str, int | tuple[int, ...]]


def open_student(text: str, teacher: Trainable, *, seed: int = 0) -> Trainable:
    """Open or make the network that learns from `teacher`, whose weights it does not share.

    Args:
        text: a path as `open_trainable` takes it; a checkpoint without a spec of its own gets the teacher's.
            Or `cut:` or `like:` and sizes, `NAME=NUMBER`, or `NAME=A+B+C+D` for the four stages of a backbone.
        seed: of random weights.

    Raises:
        UsageError: the sizes cannot be had, or the two do not belong together, see `check_pair`.
        ModelError: the weights are missing, damaged or of another model.
    """
    kind, colon, sizes = text.partition(":")
    makers: Mapping[str, tuple[Mapping[str, tuple[str, ...]], Callable[[Trainable, Sizes], Trainable]]] = {
        "cut": (_CUT, cut),
        "like": (_LIKE, partial(new, seed=seed)),
    }
    if colon and kind in makers:
        known, make = makers[kind]
        return make(teacher, _sizes(text, sizes, known[teacher.kind]))
    student = open_trainable(text)
    if not is_saved(Path(text)) and student.kind == teacher.kind:
        student = open_trainable(text, Given(teacher.spec))
    check_pair(teacher, student)
    return student


def cut(teacher: Trainable, sizes: Sizes) -> Trainable:
    """Return the teacher with its first layers and queries alone, their weights copied.

    Raises:
        UsageError: more than the teacher has.
    """
    for name, size in sizes.items():
        most = getattr(teacher.config, name)
        if size > most:
            raise UsageError(
                f"cut:{name}={size}",
                expected=f"1 to {most}: the teacher has {most}",
                fix="a larger student is made by like:",
            )
    config = replace(teacher.config, **sizes)  # type: ignore[arg-type]
    left = {name for name, _ in _shaped(replace(config, uneven=())).named_modules()}
    config = replace(config, uneven=tuple(part for part in config.uneven if part[0] in left))
    state = teacher.module.state_dict()
    kept = {
        name: state[name][tuple(slice(side) for side in wanted.shape)]
        for name, wanted in _shaped(config).state_dict().items()
    }
    return with_weights(teacher, config, kept)


def new(teacher: Trainable, sizes: Sizes, seed: int) -> Trainable:
    """Return a network of the teacher's architecture in other sizes, with random weights; even where it was pruned.

    Raises:
        UsageError: sizes that contradict each other.
    """
    config = replace(teacher.config, uneven=(), **sizes)  # type: ignore[arg-type]
    _check_sizes(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = DETR(config) if isinstance(config, DETRConfig) else ViT(config)
        _randomise(module)
    return with_weights(teacher, config, module.state_dict())


def check_pair(teacher: Trainable, student: Trainable) -> None:
    """Refuse a student that does not answer what the teacher does.

    Raises:
        UsageError: another task, other classes, or other images: size, resizing or normalisation.
    """
    if teacher.kind != student.kind:
        raise UsageError(
            f"the teacher is {_KINDS[teacher.kind]}, the student {_KINDS[student.kind]}",
            expected="two networks of one kind",
        )
    one, other = _classes(teacher), _classes(student)
    if one != other:
        raise UsageError(
            f"the teacher has {one} classes, the student {other}",
            expected="the same classes in both",
            fix="a student of the teacher's classes: cut:… or like:…",
        )
    pairs = list(zip(teacher.spec.labels, student.spec.labels, strict=False))
    differs = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
    if differs is not None:
        raise UsageError(
            f"class {differs} is {pairs[differs][0]!r} for the teacher and {pairs[differs][1]!r} for the student",
            expected="the same classes in the same order",
            cause="two data sets, or another order of the same",
        )
    rules, others = teacher.spec.preprocessing, student.spec.preprocessing
    unlike = [
        f"{field.name} {getattr(rules, field.name)} and {getattr(others, field.name)}"
        for field in fields(rules)
        if getattr(rules, field.name) != getattr(others, field.name)
    ]
    if unlike:
        raise UsageError(
            f"teacher and student want other images: {'; '.join(unlike)}",
            expected="the same preprocessing: both see the same tensors",
            fix="give both one spec",
        )


def _classes(network: Trainable) -> int:
    """Return how many classes it tells apart, without no-object."""
    config = network.config
    return config.logits - 1 if isinstance(config, DETRConfig) else config.classes


def _sizes(text: str, sizes: str, known: tuple[str, ...]) -> Sizes:
    """Parse `decoder_layers=3,depths=1+1+1+1`; raises UsageError."""
    found: dict[str, int | tuple[int, ...]] = {}
    for part in sizes.split(","):
        name, _, value = part.strip().partition("=")
        numbers = value.split("+")
        wanted = _STAGES if name in _STAGED else 1
        if (
            name not in known
            or len(numbers) != wanted
            or not all(number.isdecimal() and int(number) for number in numbers)
        ):
            raise UsageError(
                f"{text}: {part.strip()!r}",
                expected=f"NAME=NUMBER, where NAME is one of {', '.join(known)}; four numbers, as 1+1+1+1, for "
                f"{', '.join(_STAGED)}",
                fix=f"for example {text.partition(':')[0]}:{known[0]}=2",
            )
        several = tuple(map(int, numbers))
        found[name] = several if name in _STAGED else several[0]
    return found


def _shaped(config: DETRConfig | ViTConfig) -> nn.Module:
    """Return a network of these sizes that holds no weights."""
    with torch.device("meta"):
        return DETR(config) if isinstance(config, DETRConfig) else ViT(config)


def _check_sizes(config: DETRConfig | ViTConfig) -> None:
    """Raises UsageError for sizes no network can have."""
    if config.hidden % config.heads or config.hidden % 4:
        raise UsageError(
            f"like: {config.heads} heads in a width of {config.hidden}",
            expected="hidden, a multiple of 4 and of heads",
        )
    if isinstance(config, DETRConfig):
        if any(width % config.groups for width in config.widths):
            raise UsageError(
                f"like:widths={'+'.join(map(str, config.widths))}",
                expected=f"multiples of {config.groups}, the groups of the teacher's convolutions",
            )
    elif not min(config.grid):
        raise UsageError(
            f"like:patch={config.patch}",
            expected=f"a patch inside the image of {config.size[0]}×{config.size[1]}",
        )


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Set what torch's own beginnings leave at zero or too small: convolutions before ReLU, positions."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and isinstance(module, DETR):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    for part in module.modules():
        if isinstance(part, Block):
            part.get_submodule(f"conv{part.convolutions}").weight.mul_(_RESIDUAL_SHARE)  # type: ignore[operator]
    for name, weight in module.named_parameters():
        if isinstance(module, ViT) and not weight.any() and weight.ndim > 2:
            nn.init.trunc_normal_(module.get_parameter(name), std=0.02)
