"""Checkpoints of a training run: what is needed to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.errors import RunFolderError, UsageError
from vitesse.storage import write_atomically
from vitesse.training.options import TrainOptions

FOLDER, BEST = "checkpoints", "best.pt"
KEPT = 2
# They decide how a run is cut and where it is computed, not what it computes.
_FREE = ("checkpoint_seconds", "accelerator", "devices", "precision")

Value = str | int | float | None


@dataclass(frozen=True)
class Best:
    """After which step the weights scored best, and what."""

    step: int
    score: float


class Checkpoints:
    """The checkpoints in a run's folder, the newest ones, and the weights that scored best.

    Args:
        folder: of the run.
        identity: what makes this run this run; a checkpoint with another one is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Value]) -> None:
        self._folder, self._identity = folder / FOLDER, dict(identity)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after `step` steps, and drop all but the newest ones.

        Raises:
            StorageError: it cannot be written; the earlier ones are as they were.
        """
        self._write(self._folder / f"step-{step:09d}.pt", {**state, "step": step})
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, on the CPU; None where the folder has no checkpoint.

        Raises:
            UsageError: it belongs to another training; the message says what differs.
            RunFolderError: there are checkpoints, and none can be read.
        """
        paths = self._paths()
        for path in reversed(paths):
            state = self._read(path)
            if state is not None:
                return state
        if paths:
            raise RunFolderError(
                f"none of the {len(paths)} checkpoints in {self._folder} can be read",
                expected="files as they were written",
                cause="they were changed, or the disk is damaged",
                fix=f"remove {self._folder} to begin again",
            )
        return None

    def save_best(self, best: Best, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights that scored best until now, by the names of the state_dict. Raises StorageError."""
        self._write(self._folder / BEST, {**asdict(best), "weights": dict(weights)})

    def best(self) -> tuple[Best, Mapping[str, Tensor]] | None:
        """What `save_best` kept last, on the CPU; None where there is nothing, or nothing readable.

        Raises:
            UsageError: it belongs to another training.
        """
        path = self._folder / BEST
        state = self._read(path) if path.exists() else None
        return None if state is None else (Best(state["step"], state["score"]), state["weights"])

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"))

    def _write(self, path: Path, state: Mapping[str, Any]) -> None:
        content = io.BytesIO()
        torch.save({**state, "identity": self._identity}, content)
        write_atomically(path, content.getvalue())

    def _read(self, path: Path) -> dict[str, Any] | None:
        """A checkpoint's content, None where it is damaged; refused where it is another training's."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            there = state["identity"]
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError):
            return None
        self._refuse_other(path, there)
        return dict(state)

    def _refuse_other(self, path: Path, there: Mapping[str, Value]) -> None:
        names = [*self._identity, *(name for name in there if name not in self._identity)]
        differs = [
            f"{name.replace('_', ' ')}: {there.get(name, 'nothing')} there, {self._identity.get(name, 'nothing')} here"
            for name in names
            if there.get(name, "nothing") != self._identity.get(name, "nothing")
        ]
        if differs:
            raise UsageError(
                f"{path} belongs to another training: {'; '.join(differs)}",
                expected="the options, the models and the data that the training was begun with",
                fix="repeat the first command to go on, or choose another folder to begin anew",
            )


def identity_of(
    options: TrainOptions,
    student: nn.Module,
    frozen: Sequence[nn.Module],
    images: int,
    given: Mapping[str, Value],
) -> dict[str, Value]:
    """What decides the result of a training, by name: two that agree in all of it are the same training.

    Args:
        student: with the weights that it starts from.
        images: how many the data has.
        given: what only the caller knows, such as the weights of the loss's parts.
    """
    identity: dict[str, Value] = {name: value for name, value in asdict(options).items() if name not in _FREE}
    identity |= {"images": images, "student": described(student)}
    identity |= {f"teacher_{number}": described(teacher) for number, teacher in enumerate(frozen, 1)}
    return identity | dict(given)


def described(module: nn.Module) -> str:
    """A module's size and the hash of its names, shapes and weights, as "12345 weights, sha256 0123456789ab"."""
    digest, count = hashlib.sha256(), 0
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data if value.numel() else b"")
        count += value.numel()
    return f"{count} weights, sha256 {digest.hexdigest()[:12]}"
