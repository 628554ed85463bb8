"""The task's metric of a network in torch: what training, pruning and masking are judged by.

It is the metric that `vitesse optimize` judges every step by, computed by the same code on the same images: COCO AP,
top-1, or, without labels, agreement with the network as it was when the scorer was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.data.images import Pixels
from vitesse.data.results import Result
from vitesse.data.split import Sample, Split
from vitesse.errors import DataError
from vitesse.sources.trainable import Trainable
from vitesse.spec import ModelSpec, Task
from vitesse.verify.accuracy import Evaluation, Predict, evaluate
from vitesse.verify.chance import above_chance, chance_of

# Decoded images are kept between two scores up to this many bytes together; the rest is decoded again each time.
HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class _Held(Sample):
    """A sample whose pixels stay in memory."""

    pixels: Pixels | None = None

    def read(self) -> Pixels:
        assert self.pixels is not None
        return self.pixels


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores networks of one kind on one split; made by `scorer`.

    Args:
        metric: "coco_ap", "top1" or "agreement".
        split: what is scored on.
        reference: the results that agreement is measured with; None where the split is labelled.
    """

    metric: str
    spec: ModelSpec
    split: Split
    batch: int
    reference: tuple[Result, ...] | None

    def __call__(self, module: nn.Module) -> float:
        """Return the metric in points, 0..100, of a network with the outputs of the trainable's.

        It is run where its weights are, in its own number format, in eval mode and without gradients; afterwards it
        is in the mode it was in. A network whose outputs are NaN scores 0 and is no error.

        Raises:
            DataError: an unreadable image, or labels the network has no class for.
            SpecError: the outputs contradict the spec.
        """
        return 100 * self.evaluation(module).accuracy.value

    def evaluation(self, module: nn.Module) -> Evaluation:
        """Return the accuracy with its secondary figures, and the result of every image; raises as a call does."""
        return _evaluated(module, self.split, self.spec, self.batch, self.reference)


def scorer(trainable: Trainable, split: Split, *, batch: int = 32, held_bytes: int = HELD_BYTES) -> Scorer:
    """Return what scores networks that answer as `trainable`'s does, in points of 0..100.

    The images are decoded here, once, as long as they fit into `held_bytes`.

    Args:
        split: with boxes for AP, with a class for every image for top-1; else the score is the agreement with what
            `trainable` answers now.
        batch: images a forward pass; the score does not depend on it.

    Raises:
        DataError: no image or an unreadable one.
        NotVerified: without labels, the network finds nothing to agree with.
    """
    held = _held(split, held_bytes)
    reference = None
    if not split.labelled:
        reference = _evaluated(trainable.module, held, trainable.spec, batch, None).results
    labelled = "coco_ap" if trainable.spec.task is Task.DETECTION else "top1"
    metric = labelled if split.labelled else "agreement"
    return Scorer(metric, trainable.spec, held, batch, reference)


def points(score: Scorer, trainable: Trainable, device: torch.device) -> float:
    """Return the score of a network on `device`; afterwards it is on the CPU again."""
    try:
        return score(trainable.module.to(device))
    finally:
        trainable.module.cpu()


def check_knows(points: float, score: Scorer, title: str) -> None:
    """Refuse a network that does no better than guessing; without labels there is nothing to guess.

    Args:
        points: what `score` gave the network.
        title: which network it is, for the message.

    Raises:
        DataError: it knows nothing that could be kept or learnt.
    """
    chance = chance_of(score.metric, score.split)
    if score.metric != "agreement" and not above_chance(points, chance):
        raise DataError(
            f"{title} scores {points:.1f} points on the validation images, and guessing {chance:.1f}",
            expected="a network that knows the task",
            cause="classes in another order than the data's, other preprocessing, or weights that were never trained; "
            "without --spec a checkpoint is fed as in the original's evaluation",
            fix="give --spec spec.toml, see docs/spec.md; `vitesse optimize MODEL --data FOLDER` measures it alone",
        )


def network_outputs(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return a network's answer alone: (logits,) or (logits, boxes), without the auxiliary outputs of training."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs[:2])


def _evaluated(
    module: nn.Module, split: Split, spec: ModelSpec, batch: int, reference: Sequence[Result] | None
) -> Evaluation:
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return evaluate(_predict(module, spec), split, spec, reference=reference, batch=batch)
    finally:
        module.train(was_training)


def _predict(module: nn.Module, spec: ModelSpec) -> Predict:
    weight = next(module.parameters())
    names = [spec.outputs[role] for role in ("logits", "boxes") if role in spec.outputs]

    def predict(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images = torch.from_numpy(feeds[spec.image_input]).to(weight.device, weight.dtype)
        outputs = network_outputs(module(images))
        return {name: output.float().cpu().numpy() for name, output in zip(names, outputs, strict=True)}

    return predict


def _held(split: Split, held_bytes: int) -> Split:
    """Decode images from the first on, until `held_bytes` are reached."""
    samples: list[Sample] = []
    for sample in split.samples:
        if held_bytes <= 0:
            samples.append(sample)
            continue
        pixels = sample.read()
        held_bytes -= pixels.nbytes
        samples.append(_Held(sample.path, sample.image_id, sample.label, sample.size, pixels))
    return replace(split, samples=tuple(samples))
