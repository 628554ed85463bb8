"""What a student is trained on: the losses of a batch, from ground truth, a teacher, or both.

Own ViTs have no second token for the teacher, as DeiT's have; its soft labels teach what the hard ones teach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from vitesse.compress.distillation.class_loss import hard_loss, soft_loss
from vitesse.compress.distillation.hints import Hinted, Observed, hint_loss, hint_places
from vitesse.compress.distillation.matching import NotFinite
from vitesse.compress.distillation.options import DistilOptions
from vitesse.compress.distillation.set_loss import (
    PARTS,
    Queries,
    Truth,
    match_teacher,
    teacher_loss,
    truth_loss,
)
from vitesse.errors import DataError
from vitesse.sources.trainable import Trainable
from vitesse.training.batch import Batch
from vitesse.training.options import TrainOptions
from vitesse.training.recorded import Recorded

Losses = Mapping[str, Tensor]
Call = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pupil:
    """A student and its teacher as a task sees them.

    Args:
        network: what is trained: the student, or the student with projections for features.
        teacher: None: ground truth alone.
        places: modules of teacher and student whose tokens are compared, both empty without features.
        recorded: many batches of one shape will come: on a GPU the passes are recorded once and replayed.
    """

    network: nn.Module
    teacher: nn.Module | None
    places: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    recorded: bool = False

    @classmethod
    def of(cls, teacher: Trainable | None, student: Trainable, options: DistilOptions) -> Pupil:
        """Put them together as the options say."""
        if teacher is None:
            return cls(student.module, None, recorded=True)
        if not options.features:
            return cls(student.module, teacher.module, recorded=True)
        places = hint_places(teacher, student)
        widths = student.config.hidden, teacher.config.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.train.seed)  # a run that goes on begins with the same projections
            network = Hinted(student.module, places[1], widths)
        return cls(network, teacher.module, places, recorded=True)

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """The teacher, where there is one."""
        return [] if self.teacher is None else [self.teacher]

    def answer(self, images: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return the student's outputs and its projected tokens."""
        return _split(self._student(images), len(self.places[1]))

    @torch.no_grad()
    def advice(self, images: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return the teacher's outputs and its tokens."""
        return _split(self._teacher(images), len(self.places[0]))

    @cached_property
    def _student(self) -> Call:
        return self._called(self.network, self.places[1])

    @cached_property
    def _teacher(self) -> Call:
        assert self.teacher is not None
        return self._called(self.teacher, self.places[0])

    def _called(self, network: nn.Module, places: Sequence[str]) -> Call:
        observed = Observed(network, places)
        return Recorded(observed) if self.recorded else observed


@dataclass(frozen=True)
class ViTTask:
    """Classes: the losses "truth", "teacher" and "features", those that the options ask for."""

    pupil: Pupil
    options: DistilOptions

    @property
    def student(self) -> nn.Module:
        """The network whose weights change."""
        return self.pupil.network

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """The teacher, where there is one."""
        return self.pupil.frozen

    def loss(self, batch: Batch) -> Losses:
        """Return the parts; raises DataError where labels shall be learnt and the batch has none."""
        (logits,), tokens = self.pupil.answer(batch.images)
        losses = {}
        if self.options.labels:
            if batch.labels is None:
                raise _no_labels("class")
            hard = hard_loss(logits.float(), batch.labels, self.options.smoothing)
            losses["truth"] = self.options.truth_weight * hard
        if self.pupil.teacher is not None:
            (advice,), wanted = self.pupil.advice(batch.images)
            soft = soft_loss(logits.float(), advice.float(), self.options.temperature_of("vit"))
            losses["teacher"] = self.options.teacher_weight * soft.mean()
            losses |= _features(tokens, wanted, self.options)
        return losses


@dataclass(frozen=True)
class DETRTask:
    """Sets of boxes: "truth_class", "truth_l1", …, "teacher_giou", "features", those that the options ask for."""

    pupil: Pupil
    options: DistilOptions

    @property
    def student(self) -> nn.Module:
        """The network whose weights change."""
        return self.pupil.network

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """The teacher, where there is one."""
        return self.pupil.frozen

    def loss(self, batch: Batch) -> Losses:
        """Return the parts; raises DataError where labels shall be learnt and the batch has none.

        Outputs that are no numbers cannot be matched: the parts are then NaN, which stops the loop.
        """
        answer, tokens = self.pupil.answer(batch.images)
        found = Queries.of(answer)
        try:
            return self._parts(batch, found, tokens)
        except NotFinite:
            return dict.fromkeys(self._names(), found.logits.sum() * torch.nan)

    def _names(self) -> list[str]:
        """The names of what `_parts` returns."""
        taught = self.pupil.teacher is not None
        sources = ["truth"] * self.options.labels + ["teacher"] * taught
        return [f"{source}_{part}" for source in sources for part in PARTS] + ["features"] * bool(
            self.pupil.places[0]
        )

    def _parts(self, batch: Batch, found: Queries, tokens: Sequence[Tensor]) -> Losses:
        losses, truth, asked = dict[str, Tensor](), None, None
        if self.options.labels:
            if batch.objects is None:
                raise _no_labels("objects")
            truth = Truth.of(batch.objects)
            asked = truth.match(found)
        # A GPU works on the teacher's answer, asked for here, while the host matches the ground truth below.
        if self.pupil.teacher is not None:
            advice, wanted = self.pupil.advice(batch.images)
            layers, _, queries, _ = found.logits.shape
            targets = Queries.of(advice).for_student(layers, queries)
            imitated = match_teacher(found, targets)
        if truth is not None and asked is not None:
            parts = truth_loss(found, truth, asked.pairs())
            losses |= _weighed("truth", parts, self.options.truth_weight)
        if self.pupil.teacher is not None:
            parts = teacher_loss(found, targets, imitated.pairs(), self.options.temperature_of("detr"))
            losses |= _weighed("teacher", parts, self.options.teacher_weight)
            losses |= _features(tokens, wanted, self.options)
        return losses


def vit_task(teacher: Trainable | None, student: Trainable, options: DistilOptions) -> ViTTask:
    """Make the task of a classifier. Raises UsageError where features cannot be compared."""
    return ViTTask(Pupil.of(teacher, student, options), options)


def detr_task(teacher: Trainable | None, student: Trainable, options: DistilOptions) -> DETRTask:
    """Make the task of a detector. Raises UsageError where features cannot be compared."""
    return DETRTask(Pupil.of(teacher, student, options), options)


def make_task(teacher: Trainable | None, student: Trainable, options: DistilOptions) -> ViTTask | DETRTask:
    """Make the task that fits the student's kind."""
    make = vit_task if student.kind == "vit" else detr_task
    return make(teacher, student, options)


def task_loss(trainable: Trainable) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the plain loss on ground truth of a network of this kind: (module, batch) → scalar.

    Of a ViT the cross-entropy, of a DETR the set loss of all decoder layers. The batch lies on the module's device.
    """
    options = DistilOptions(TrainOptions(steps=1), smoothing=0.0)
    kind = ViTTask if trainable.kind == "vit" else DETRTask

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        parts = kind(Pupil(module, None), options).loss(batch)
        return torch.stack(list(parts.values())).sum()

    return loss


def _split(found: tuple[Tensor, ...], places: int) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Outputs, and the tokens of as many places behind them."""
    outputs = len(found) - places
    return found[:outputs], list(found[outputs:])


def _weighed(whose: str, parts: Losses, weight: float) -> Losses:
    return {f"{whose}_{name}": weight * part for name, part in parts.items()}


def _features(tokens: Sequence[Tensor], wanted: Sequence[Tensor], options: DistilOptions) -> Losses:
    return {"features": options.feature_weight * hint_loss(tokens, wanted)} if tokens else {}


def _no_labels(what: str) -> DataError:
    return DataError(
        f"the training images come without labels ({what})",
        expected="labels for every image, or a teacher that makes them unnecessary",
        fix="learn from the teacher alone: --no-labels",
    )
