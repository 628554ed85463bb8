"""Images of a split as batches with labels, to take gradients on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitesse.compress.scoring import network_outputs
from vitesse.data.preprocess import feeds, place
from vitesse.data.split import Sample, Split
from vitesse.sources.trainable import Trainable
from vitesse.spec import ModelSpec, Task
from vitesse.training.batch import Batch, Objects
from vitesse.training.data.targets import flat_objects
from vitesse.verify.agreement import CONFIDENT


def labelled_batches(trainable: Trainable, split: Split, size: int = 8) -> list[Batch]:
    """Return the images of `split` with their labels, `size` a batch; the last one may be smaller.

    Where the split has no labels, those are taken that the network itself gives: the first class, or every object
    that it finds with a score of 0.5 or more. Gradients then ask what holds these answers up.

    Raises:
        DataError: an unreadable image, or one that the spec does not let be fed.
    """
    parts = [split.samples[start : start + size] for start in range(0, len(split), size)]
    return [_batch(trainable, split, part) for part in parts]


def _batch(trainable: Trainable, split: Split, samples: tuple[Sample, ...]) -> Batch:
    spec = trainable.spec
    pixels = [sample.read() for sample in samples]
    images = torch.from_numpy(feeds(pixels, spec, [str(one.path) for one in samples])[spec.image_input])
    if not split.labelled:
        return _answered(trainable.module, images, spec)
    if spec.task is Task.CLASSIFICATION:
        return Batch(images, labels=torch.tensor([sample.label for sample in samples]))
    placements = [place(one.shape[:2], spec.preprocessing) for one in pixels]
    assert split.truth is not None
    truths = [split.truth[sample.image_id] for sample in samples]
    height, width = images.shape[2:]
    flat, _ = flat_objects(truths, placements, (height, width), visible=0.0)
    return Batch(images, objects=flat.tensors(torch.device("cpu")))


def _answered(module: nn.Module, images: Tensor, spec: ModelSpec) -> Batch:
    with torch.no_grad():
        outputs = [one.cpu() for one in network_outputs(module(images.to(next(module.parameters()).device)))]
    if spec.task is Task.CLASSIFICATION:
        return Batch(images, labels=outputs[0].argmax(1))
    scores, labels = outputs[0].softmax(2)[:, :, :-1].max(2)
    sure = scores >= CONFIDENT
    objects = zip(labels, outputs[1], sure, strict=True)
    return Batch(images, objects=tuple(Objects(names[kept], boxes[kept]) for names, boxes, kept in objects))
