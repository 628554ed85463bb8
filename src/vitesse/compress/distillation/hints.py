"""Imitating a teacher's inner tokens, as FitNets do (Romero et al. 2015, arXiv:1412.6550).

    student's tokens ─▶ LayerNorm ─▶ learned projection ─┐
    teacher's tokens ─▶ LayerNorm ───────────────────────┴▶ mean squared error

The norms, without weights, make tokens of any layer comparable. The projection bridges other widths; it stands beside
the student while that is trained, and is dropped with `Hinted`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.errors import UsageError
from vitesse.sources.detr import DETRConfig
from vitesse.sources.trainable import Trainable
from vitesse.sources.vit import ViTConfig


class Hinted(nn.Module):
    """A student and the projections of its tokens; called, it is the student alone."""

    def __init__(self, student: nn.Module, places: Sequence[str], widths: tuple[int, int]) -> None:
        """Project the outputs of the modules at `places` from the student's to the teacher's width."""
        super().__init__()
        self.student, self.places = student, tuple(places)
        self.projections = nn.ModuleList(nn.Linear(*widths) for _ in places)
        if widths[0] == widths[1]:
            for projection in self.projections:
                nn.init.eye_(projection.weight)  # type: ignore[arg-type]
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the student returns."""
        answer: Tensor | tuple[Tensor, ...] = self.student(images)
        return answer

    def projected(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Bring tokens of the student, (batch, tokens, student's width) by place, to the teacher's width."""
        return [
            projection(normalised(part)) for projection, part in zip(self.projections, tokens, strict=True)
        ]


class Observed(nn.Module):
    """A network that also tells its tokens: called, it returns its outputs, and behind them the tokens of each place.

    Args:
        network: with `Hinted`, its student's tokens come projected.
        places: names of modules; those of the student, in a `Hinted`.
    """

    def __init__(self, network: nn.Module, places: Sequence[str]) -> None:
        super().__init__()
        self.network, self.places = network, tuple(places)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs and the tokens in the order of execution."""
        hinted = self.network if isinstance(self.network, Hinted) else None
        with outputs_of(hinted.student if hinted else self.network, self.places) as tokens:
            answer = self.network(images)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        return (*outputs, *(hinted.projected(tokens) if hinted else tokens))


@contextmanager
def outputs_of(network: nn.Module, places: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect, in the order of execution, what the modules at `places` return while the block runs."""
    found: list[Tensor] = []
    handles = [
        network.get_submodule(place).register_forward_hook(
            lambda _module, _inputs, output: found.append(output)
        )
        for place in places
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def hint_loss(projected: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error to the teacher's normalised tokens, the mean over places."""
    parts = [
        F.mse_loss(one.float(), normalised(other.detach().float()))
        for one, other in zip(projected, wanted, strict=True)
    ]
    return torch.stack(parts).mean()


def normalised(tokens: Tensor) -> Tensor:
    """Bring every token (…, width) to mean 0 and variance 1."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def hint_places(teacher: Trainable, student: Trainable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return whose tokens are compared: modules of the teacher, and modules of the student.

    ViT: after every block of the student but the last, the block that is as deep in the teacher; DETR: the memory.

    Raises:
        UsageError: the two cut images into other tokens, or there is no such block.
    """
    one, other = teacher.config, student.config
    if isinstance(one, ViTConfig) and isinstance(other, ViTConfig):
        if (one.grid, one.tokens) != (other.grid, other.tokens):
            raise _other_tokens(f"{one.tokens} of a grid of {one.grid}", f"{other.tokens} of {other.grid}")
        if min(one.layers, other.layers) < 2:
            raise UsageError(
                f"features of a teacher of {one.layers} blocks and a student of {other.layers}",
                expected="two blocks or more in each: what the last one gives goes to the classes alone",
                fix="distil without features",
            )
        last = one.layers - 1
        depths = [min(last, -(-i * one.layers // other.layers)) for i in range(1, other.layers)]
        return tuple(f"blocks.{depth - 1}" for depth in depths), tuple(
            f"blocks.{i}" for i in range(len(depths))
        )
    assert isinstance(one, DETRConfig) and isinstance(other, DETRConfig)
    if one.stride != other.stride:
        raise _other_tokens(f"one per {one.stride} pixels", f"one per {other.stride}")
    return ("transformer.encoder",), ("transformer.encoder",)


def _other_tokens(one: str, other: str) -> UsageError:
    return UsageError(
        f"features cannot be compared: the teacher has tokens {one}, the student {other}",
        expected="the same tokens in both",
        fix="distil without features, or take a student with the teacher's patches and stride",
    )
