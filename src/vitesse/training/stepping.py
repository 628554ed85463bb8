"""One optimiser step: split where memory does not hold the batch, summed over processes, checked, clipped, taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vitesse.errors import VitesseError
from vitesse.training.batch import Batch
from vitesse.training.live_norm import LiveNorm
from vitesse.training.optimiser import adamw
from vitesse.training.options import TrainOptions
from vitesse.training.task import Task
from vitesse.training.transfer import fetched


@dataclass(frozen=True)
class Step:
    """What one step came to.

    Args:
        parts: the loss by name, of the whole batch.
        gradient_norm: before clipping.
        asked_to_end: some process was interrupted.
    """

    parts: Mapping[str, float]
    gradient_norm: float
    asked_to_end: bool

    @property
    def loss(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def not_finite(self) -> str:
        """Which number is NaN or infinite, in words; "" where none is, and only then the step was taken."""
        named = {f"the loss {name!r}": value for name, value in self.parts.items()}
        named["the gradient norm"] = self.gradient_norm
        return ", ".join(f"{name} is {value}" for name, value in named.items() if not math.isfinite(value))


@dataclass
class Stepper:
    """Takes steps.

    Args:
        at_once: images that go through the network at once on one device; halved when memory runs out.
    """

    fabric: Fabric
    task: Task
    options: TrainOptions
    at_once: int
    optimiser: torch.optim.AdamW = field(init=False)
    learning: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        """Set the optimiser up; the student is on its device."""
        self.reset()

    def reset(self) -> None:
        """Forget the moments of the gradients."""
        self.optimiser = adamw(self.task.student, self.options)
        self.learning = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def take(
        self,
        batch: Batch,
        rate: float,
        seed: int,
        *,
        end: bool = False,
        meanwhile: Callable[[], None],
    ) -> Step:
        """Take a step on this process's share of `batch`, unless a number of it is not finite.

        Args:
            batch: the same in all processes.
            rate: the learning rate.
            seed: what is random in the student's forward pass follows from it.
            end: this process was asked to end.
            meanwhile: called when all is asked of a GPU, before it is waited for.

        Raises:
            VitesseError: memory does not hold a single image.
        """
        statistics = [buffer.clone() for buffer in self._statistics()]
        while (parts := self._gradients(batch, seed)) is None:
            self._restore(statistics)
        step = self._reduced(parts, end, meanwhile)
        if step.not_finite:
            self._restore(statistics)
        else:
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return step

    def _statistics(self) -> list[Tensor]:
        """What a forward pass changes: the running statistics of batch norms."""
        kinds = (LiveNorm, nn.modules.batchnorm._NormBase)
        norms = (one for one in self.task.student.modules() if isinstance(one, kinds))
        return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]

    def _restore(self, statistics: list[Tensor]) -> None:
        for buffer, old in zip(self._statistics(), statistics, strict=True):
            buffer.copy_(old)

    def _gradients(self, batch: Batch, seed: int) -> dict[str, Tensor] | None:
        """Add up the gradients of the share; None where memory ran out, and the next try is with half of it."""
        rank, processes, images = self.fabric.global_rank, self.fabric.world_size, len(batch)
        share = batch.part(rank * images // processes, (rank + 1) * images // processes)
        self.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(seed * processes + rank)
        parts: dict[str, Tensor] = {}
        try:
            for start in range(0, len(share), self.at_once):
                some = share.part(start, start + self.at_once)
                with self.fabric.autocast():
                    losses = self.task.loss(some)
                weighted = {name: loss.float() * (len(some) / images) for name, loss in losses.items()}
                if start:
                    self._keep_gradients()
                self.fabric.backward(torch.stack(list(weighted.values())).sum())
                for name, loss in weighted.items():
                    parts[name] = parts[name] + loss.detach() if name in parts else loss.detach()
            return parts
        except torch.OutOfMemoryError as error:
            self._halve(min(self.at_once, len(share)), error)
        # Outside the except block, whose traceback keeps the tensors of the failed pass.
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _keep_gradients(self) -> None:
        """What was added up so far must not lie where a recorded pass writes its gradients again."""
        for parameter in self.learning:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def _halve(self, tried: int, error: torch.OutOfMemoryError) -> None:
        if tried <= 1:
            raise VitesseError(
                "memory does not hold one image of this training",
                expected="room for the weights, their optimiser state and one image's activations",
                cause=str(error).partition("\n")[0]
                or "the model and the teacher are too large for the device",
                fix="free the device's memory, train on smaller images, or choose a device with more",
            ) from error
        self.at_once = tried // 2

    def _reduced(self, parts: Mapping[str, Tensor], end: bool, meanwhile: Callable[[], None]) -> Step:
        """Sum gradients and losses over the processes, clip, and read the numbers: the only wait of a step."""
        if self.fabric.world_size > 1:
            parts, end = self._summed(parts, end)
        norm = nn.utils.clip_grad_norm_(self.learning, self.options.clip or math.inf)
        numbers = fetched(torch.stack([*parts.values(), norm.float()]))
        meanwhile()
        *values, gradient_norm = numbers.wait().tolist()
        return Step(dict(zip(parts, values, strict=True)), gradient_norm, end)

    def _summed(self, parts: Mapping[str, Tensor], end: bool) -> tuple[dict[str, Tensor], bool]:
        """One exchange of everything. Not DDP's, so that each process may split its share as its memory asks."""
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.learning]
        flags = torch.tensor([float(end)], device=self.fabric.device)
        pieces = [
            *(gradient.flatten() for gradient in gradients),
            *(loss[None] for loss in parts.values()),
            flags,
        ]
        total = self.fabric.all_reduce(torch.cat(pieces), reduce_op="sum")
        assert isinstance(total, Tensor)
        summed = torch.split(total, [len(piece) for piece in pieces])
        for parameter, piece in zip(self.learning, summed, strict=False):
            parameter.grad = piece.view_as(parameter)
        losses = {name: value[0] for name, value in zip(parts, summed[len(gradients) :], strict=False)}
        return losses, bool(summed[-1] > 0)
