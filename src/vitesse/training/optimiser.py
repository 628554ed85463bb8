"""AdamW's parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from vitesse.errors import UsageError
from vitesse.training.options import TrainOptions


def rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of step `step`, from 0, of `steps`.

    It rises linearly over the first `warmup` (0..1) of the steps and reaches `peak` on the last of them, then falls
    as half a cosine, which would reach 0 one step after the end (Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def adamw(student: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW over what of the student requires gradients; its rate is set before every step.

    Raises:
        UsageError: nothing requires gradients.
    """
    matrices = {id(weight) for weight in _matrices(student)}
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not learning:
        raise UsageError(
            f"no weight of the {type(student).__name__} requires gradients",
            expected="a student with weights that may change",
            cause="the same module was handed over as a teacher, or its weights were frozen",
        )
    decayed = [parameter for parameter in learning if id(parameter) in matrices]
    others = [parameter for parameter in learning if id(parameter) not in matrices]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = learning[0].device.type == "cuda"
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.rate, fused=fused)


def _matrices(student: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of linear layers, convolutions and attention: of two dimensions or more, and called a weight.

    Tables of embeddings are weights by name, but every row stands for itself; positions, class tokens and probes
    are parameters of their own name.
    """
    for module in student.modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and (name == "weight" or name.endswith("_weight")):
                yield parameter
