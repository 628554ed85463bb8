"""Networks, tasks and data small enough to train in a test, and to be told what to do wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.training.batch import Batch
from vitesse.training.loop import Trained, train
from vitesse.training.options import TrainOptions

CLASSES = 3
OPTIONS = TrainOptions(
    steps=12, batch=4, rate=1e-2, accelerator="cpu", score_every=0.25, checkpoint_seconds=1e9
)
EVERY_STEP = replace(OPTIONS, checkpoint_seconds=0)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def network(seed: int = 0, *, dropout: float = 0.25) -> nn.Sequential:
    """A convolution with batch statistics, a norm, dropout: everything that must come back from a checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.LayerNorm(16),
            nn.Dropout(dropout),
            nn.Linear(16, CLASSES),
        )


@dataclass
class Classify:
    """Cross-entropy, and a pull towards a teacher's answers where there is one.

    Args:
        before: called with the batch in front of every loss; may raise, or return a factor.
    """

    student: nn.Module
    frozen: Sequence[nn.Module] = ()
    before: Callable[[Batch], float | None] = lambda batch: None

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        factor = self.before(batch)
        logits = self.student(batch.images)
        assert batch.labels is not None
        parts = {"class": F.cross_entropy(logits, batch.labels) * (1.0 if factor is None else factor)}
        if self.frozen:
            parts["teacher"] = F.mse_loss(logits, self.frozen[0](batch.images))
        return parts


@dataclass
class Noise:
    """Images of noise whose labels can be learned; augmented by (seed, epoch, position) alone."""

    images: int = 18
    seed: int = 3
    on_batch: Callable[[], None] = lambda: None
    epochs: list[int] = field(default_factory=list)

    def epoch(self, index: int, batch: int, device: torch.device) -> Iterator[Batch]:
        self.epochs.append(index)
        base = torch.Generator().manual_seed(self.seed)
        labels = torch.randint(CLASSES, (self.images,), generator=base)
        images = torch.randn(self.images, 3, 4, 4, generator=base) + labels[:, None, None, None]
        own = torch.Generator().manual_seed(1000 * self.seed + index)
        order = torch.randperm(self.images, generator=own)
        for start in range(0, max(1, self.images // batch) * batch, batch):
            chosen = order[start : start + batch]
            noise = 0.1 * torch.randn(len(chosen), 3, 4, 4, generator=own)
            self.on_batch()
            yield Batch((images[chosen] + noise).to(device), labels[chosen].to(device))


def quiet_score(module: nn.Module) -> float:
    """Minus the loss on fixed images."""
    batch = next(Noise(images=12, seed=9).epoch(0, 12, torch.device("cpu")))
    return -float(F.cross_entropy(module(batch.images), batch.labels))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trained(
    folder: Path, options: TrainOptions = OPTIONS, **given: object
) -> tuple[Trained, dict[str, Tensor]]:
    """Train a fresh network on fresh noise; the result and the student's weights."""
    task = given.pop("task", None) or Classify(network())
    data = given.pop("data", None) or Noise()
    result = train(task, data, options, folder, **given)  # type: ignore[arg-type]
    return result, weights(task.student)  # type: ignore[attr-defined]


def state(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").glob("step-*.pt"))
    return dict(torch.load(newest, weights_only=True))


class Cut(Exception):
    """Stands for a process that ends without a word."""


def at_call(number: int, act: Callable[[], Any]) -> Callable[..., None]:
    """Return a function that does `act` when called for the `number`th time, from 1."""
    calls = iter(range(1, 10**6))

    def called(*_: object) -> None:
        if next(calls) == number:
            act()

    return called


def cut() -> None:
    raise Cut
