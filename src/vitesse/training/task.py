"""What is trained, and by which loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from vitesse.training.batch import Batch


class Task(Protocol):
    """A network that learns, networks that only answer, and the loss between them.

    The loss is a mean over the images of its batch: the loop may split a batch where memory does not hold it
    whole, and then weighs each part by its share of the images.
    """

    @property
    def student(self) -> nn.Module:
        """The network whose weights change: whatever of it requires gradients."""
        ...

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """Teachers: the loop moves them to the device, in eval mode and without gradients."""
        ...

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Scalar parts by name, on the batch's device; their sum is minimised."""
        ...
