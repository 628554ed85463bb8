"""Losses of a classifier: soft labels of a teacher, hard labels of people."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened classes, per item (Hinton et al. 2015, arXiv:1503.02531).

    T² keeps the gradients' size whatever the temperature.

    Args:
        student: logits (…, classes).
        teacher: logits (…, classes); no gradient flows into them.
        temperature: T, above 0.

    Returns:
        (…), 0 where both give the same classes, else above.
    """
    wanted = (teacher.detach() / temperature).log_softmax(dim=-1)
    given = (student / temperature).log_softmax(dim=-1)
    return temperature**2 * (wanted.exp() * (wanted - given)).sum(-1)


def hard_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy with smoothed labels, the mean over (batch, classes) `logits`; labels int64 (batch,)."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)
