"""What one image costs a network: floating-point operations and parameters, counted on the module itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitesse.sources.detr import DETR
from vitesse.sources.trainable import Trainable


def flops(trainable: Trainable) -> int:
    """Return the operations of one image of the spec's size, two to a multiply-add: convolutions and products.

    What elementwise operations, normalisation and softmax cost is not counted, and neither are auxiliary outputs,
    which a deployed network has not.
    """
    return flops_by_module(trainable)[""]


def flops_by_module(trainable: Trainable) -> Mapping[str, int]:
    """Return the operations inside every module by name, "" being the whole; see `flops`. Nothing is computed."""
    module = copy.deepcopy(trainable.module).to("meta").requires_grad_(False)
    if isinstance(module, DETR):
        module.keep_aux = False
    images = torch.empty(1, 3, *trainable.spec.preprocessing.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    root = type(module).__name__
    counted = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    inner = {name.removeprefix(f"{root}."): count for name, count in counted.items() if name != "Global"}
    return {**inner, "": counted["Global"]}


def parameters(trainable: Trainable) -> int:
    """Return how many trainable numbers the network has; the statistics of FrozenBatchNorm are none."""
    return sum(parameter.numel() for parameter in trainable.module.parameters())
