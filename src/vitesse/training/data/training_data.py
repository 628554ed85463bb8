"""Images to train on, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitesse.spec import Task
from vitesse.training.batch import Batch
from vitesse.training.data.augment import Augmentation, Augmenter, draw, moved
from vitesse.training.data.store import Store
from vitesse.training.data.targets import FlatObjects
from vitesse.training.transfer import sent

# What the random numbers of an epoch are for, so that order and changes do not share any.
_ORDER, _CHANGES = 0, 1


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A `BatchSource` over decoded images.

    Args:
        task: what the labels, where there are any, are for.
        usable: (n,) int64, the images to train on, as indices of the store.
        store: their pixels.
        augmenter: normalises, and changes where there is an augmentation.
        classes: (N,) int64 class indices by index of the store, or None.
        objects: those of all images of the store, or None.
        augmentation: None where the images stay as they are.
        seed: of order and augmentation.
        sha256: fingerprint of the files' names, sizes and labels.
        notes: what was decided on the way and what was left out, for a log.
    """

    task: Task
    usable: NDArray[np.int64]
    store: Store
    augmenter: Augmenter
    classes: NDArray[np.int64] | None
    objects: FlatObjects | None
    augmentation: Augmentation | None
    seed: int
    sha256: str
    notes: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images an epoch draws from."""
        return len(self.usable)

    @property
    def labelled(self) -> bool:
        """Whether batches have labels or objects."""
        return self.classes is not None or self.objects is not None

    def without_augmentation(self) -> TrainingData:
        """Return the same images, in the same order, as they are; nothing is decoded again."""
        return replace(self, augmentation=None)

    def epoch(self, index: int, batch: int, device: torch.device) -> Iterator[Batch]:
        """Give epoch `index` (from 0) in batches of `batch` images on `device`.

        The order is a function of seed and epoch, what happens to the images one of seed, epoch and number of the
        batch; both are drawn on the CPU. A last short batch is dropped unless it is the only one.
        """
        order = np.random.default_rng((self.seed, index, _ORDER)).permutation(self.usable)
        whole = len(order) // batch * batch
        chosen = [order[at : at + batch] for at in range(0, whole, batch)] or [order]
        pictures = self.store.batches(chosen, device)
        for number, (images, pixels) in enumerate(zip(chosen, pictures, strict=True)):
            yield self._batch(images, pixels, (self.seed, index, _CHANGES, number))

    def _batch(self, images: NDArray[np.int64], pixels: Tensor, seed: tuple[int, ...]) -> Batch:
        objects = None if self.objects is None else self.objects.of(images)
        if self.augmentation is None:
            tensor = self.augmenter.normalised(pixels)
        else:
            drawn = draw(self.augmentation, len(images), seed)
            tensor = self.augmenter.augmented(pixels, drawn)
            objects = None if objects is None else moved(objects, drawn, self.augmentation.visible)
        device = pixels.device
        return Batch(
            tensor,
            None if self.classes is None else sent(self.classes[images], device),
            None if objects is None else objects.tensors(device),
        )
