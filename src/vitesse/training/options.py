"""How long, how fast and where a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitesse.errors import OutOfRange, UsageError

PRECISIONS = ("auto", "32-true", "bf16-mixed")
# Of training images, see `training.data.augment.augmentation`; here, where torch is not needed.
AUGMENTATIONS = ("usual", "in-place", "none")


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training run.

    Args:
        seconds: time for the training steps, in seconds; exactly one of `seconds` and `steps` is given.
        steps: optimiser steps.
        batch: images of one optimiser step, over all devices.
        rate: AdamW's learning rate after the warm-up.
        weight_decay: AdamW's, on weight matrices and kernels alone.
        warmup: share of the steps (0..1, below 1) over which the rate rises from 0; it then falls as a cosine.
        clip: the norm to which gradients are clipped; 0 clips nothing.
        ema: decay of the running average of weights, 0 (no averaging) up to, but not including, 1.
        precision: "auto" (bf16-mixed on GPUs that compute in it, else 32-true), or one of PRECISIONS.
        accelerator: "auto", "cpu" or "cuda".
        devices: processes, one device each; divides `batch`.
        seed: of everything random that the loop itself decides; the data source has its own.
        checkpoint_seconds: how long a run that is cut may lose, in seconds; 0 writes a checkpoint after each step.
        score_every: share of the steps (above 0, up to 1) after which the network is scored again.

    Raises:
        UsageError: a value is out of its range.
    """

    seconds: float | None = None
    steps: int | None = None
    batch: int = 128
    rate: float = 3e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    seed: int = 0
    checkpoint_seconds: float = 60
    score_every: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if (self.seconds is None) == (self.steps is None):
            raise UsageError(
                f"seconds is {self.seconds} and steps is {self.steps}",
                expected="exactly one of the two",
                fix="say how long the training may take, or how many steps it has",
            )
        for name, right, expected in self._ranges():
            if not right:
                raise OutOfRange(name, getattr(self, name), expected=expected)

    def _ranges(self) -> tuple[tuple[str, bool, str], ...]:
        """Per option: whether its value is in the range that the text names. NaN is in none."""
        return (
            ("seconds", self.seconds is None or 0 < self.seconds < math.inf, "a time above 0, in seconds"),
            ("steps", self.steps is None or self.steps >= 1, "1 step or more"),
            ("batch", self.batch >= 1, "1 image or more"),
            ("rate", 0 < self.rate < math.inf, "a learning rate above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, from 0 to below 1"),
            ("clip", 0 <= self.clip < math.inf, "a gradient norm, or 0 for no clipping"),
            ("ema", 0 <= self.ema < 1, "a decay from 0 to below 1"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            ("accelerator", self.accelerator in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
            (
                "devices",
                self.devices >= 1 and self.batch % self.devices == 0,
                f"1 or more, dividing the batch of {self.batch}",
            ),
            ("checkpoint_seconds", self.checkpoint_seconds >= 0, "seconds, 0 or more"),
            ("score_every", 0 < self.score_every <= 1, "a share of the steps, above 0 and up to 1"),
        )


def check_augmentation(option: str, name: str) -> None:
    """Raise UsageError, which names the option, where `name` is none of AUGMENTATIONS."""
    if name not in AUGMENTATIONS:
        raise UsageError(f"{option} = {name!r}", expected=f"one of {', '.join(AUGMENTATIONS)}")
