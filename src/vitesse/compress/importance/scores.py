"""How much each unit matters, without trying: by BatchNorm, by its weights, or by gradients on images.

    bn      √(γ² · var / (var + ε)): the standard deviation of a channel behind its BatchNorm (after Liu et al. 2017,
            arXiv:1708.06519, who prune by γ); of a sum, of all that is added. Backbone channels only.
    l1      L1 norm of the weights that make a unit (BatchNorm folded in) times that of the weights that read it (after
            Li et al. 2017, arXiv:1608.08710). Doubling what makes it and halving what reads it changes nothing.
    taylor  |Σ activation × ∂loss/∂activation| over the places of a unit in an image, summed over the images: the first-
            order estimate of what the loss of an image changes by when the unit is gone (Molchanov et al. 2017,
            arXiv:1611.06440). Behind a ReLU that never opens it is 0, whatever the weights are.

Layers are scored by l1 as the sum over their weight matrices, queries as the norm of their embedding. By taylor a query
counts with what it claims, the sum over images of its probability of an object: its gradient says nothing, because a
confident query, right or wrong, sits where softmax is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.compress.importance.gating import gated
from vitesse.compress.importance.units import Kind, Site, sites
from vitesse.errors import ModelError, UsageError
from vitesse.sources.detr import FrozenBatchNorm, MultiheadAttention
from vitesse.sources.trainable import Trainable
from vitesse.sources.vit import Attention
from vitesse.training.batch import Batch

METHODS = ("taylor", "l1", "bn")
Loss = Callable[[nn.Module, Batch], Tensor]
Scores = Mapping[str, NDArray[np.float64]]


def scores(
    trainable: Trainable, method: str, batches: Sequence[Batch] = (), loss: Loss | None = None
) -> Scores:
    """Return how much each unit matters: group name → (size,) float64, 0 or more, larger matters more.

    Scores compare units of one group; between groups they have other scales.

    Args:
        method: one of METHODS; "bn" leaves out every group without BatchNorm.
        batches: images for "taylor", on any device.
        loss: for "taylor", the mean loss of the network on a batch; it calls the network once.

    Raises:
        UsageError: no such method; "taylor" without images or loss; "bn" for a network without BatchNorm.
        ModelError: the loss is not finite.
    """
    if method == "taylor":
        if not batches or loss is None:
            raise UsageError(
                "importance by taylor without images"
                if not batches
                else "importance by taylor without a loss",
                expected="images, and the loss that the network was trained with",
                fix="name some with --data, or use --method l1, which needs none",
            )
        return _taylor(trainable, batches, loss)
    if method == "l1":
        return {site.group.name: _array(_l1(trainable.module, site)) for site in sites(trainable)}
    if method != "bn":
        raise UsageError(f"importance by {method!r}", expected=f"one of {', '.join(METHODS)}")
    found = {
        site.group.name: _array(_bn(trainable.module, site))
        for site in sites(trainable)
        if site.group.kind in (Kind.CHANNELS, Kind.RESIDUAL)
    }
    if not found:
        raise UsageError(
            f"importance by bn: this {trainable.kind} has no BatchNorm",
            expected="a DETR with its ResNet",
            fix="use --method taylor",
        )
    return found


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()


def _bn(module: nn.Module, site: Site) -> Tensor:
    spread = []
    for _, name in site.made_by:
        norm = _norm(module, name)
        spread.append(norm.affine()[0].square() * norm.get_buffer("running_var").double())
    return torch.stack(spread).sum(0).sqrt()


def _l1(module: nn.Module, site: Site) -> Tensor:
    """(size,): per feature what makes it times what reads it; a head is the sum over its features."""
    if site.group.kind is Kind.LAYERS:
        return torch.stack([_matrices(module.get_submodule(name)) for name in site.gates])
    total = torch.stack([_rows(module, *maker) for maker in site.made_by]).sum(0)
    if site.read_by:
        total = total * torch.stack([_columns(module, name) for name in site.read_by]).sum(0)
    per_unit: Tensor = torch.unflatten(total, 0, (site.group.size, -1))
    return per_unit.sum(1)


def _matrices(layer: nn.Module) -> Tensor:
    return torch.stack([one.detach().abs().sum() for one in layer.parameters() if one.ndim > 1]).sum()


def _rows(module: nn.Module, name: str, norm: str | None) -> Tensor:
    """L1 norm per output of a layer, BatchNorm folded in; of an attention, of its values."""
    made = module.get_submodule(name)
    if isinstance(made, MultiheadAttention):
        weight = made.in_proj_weight.chunk(3)[2]
    else:
        weight = _weight(made.value if isinstance(made, Attention) else made)
    total = weight.detach().double().flatten(1).abs().sum(1)
    return total if norm is None else total * _norm(module, norm).affine()[0].abs()


def _columns(module: nn.Module, name: str) -> Tensor:
    """L1 norm per input of a layer; a grouped convolution reads each input in one of its groups only."""
    reader = module.get_submodule(name)
    weight = _weight(reader).detach().double()
    by_input = weight.reshape(*weight.shape[:2], -1).abs().sum(2)  # (outputs, inputs of a group)
    by_group: Tensor = torch.unflatten(by_input, 0, (getattr(reader, "groups", 1), -1))
    return by_group.sum(1).flatten()


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")


def _norm(module: nn.Module, name: str | None) -> FrozenBatchNorm:
    found = module.get_submodule(name or "")
    assert isinstance(found, FrozenBatchNorm)
    return found


def _taylor(trainable: Trainable, batches: Sequence[Batch], loss: Loss) -> Scores:
    module = trainable.module
    weight = next(module.parameters())
    places = sites(trainable)
    has_gate = [site for site in places if site.group.kind is not Kind.QUERIES]
    totals = {site.group.name: torch.zeros(site.group.size, dtype=torch.float64) for site in places}
    was_training = module.training
    module.eval()
    handle = module.register_forward_hook(partial(_claim, totals)) if trainable.kind == "detr" else None
    try:
        for batch in batches:
            gates = {
                site: torch.ones(
                    len(batch), site.group.size, device=weight.device, dtype=weight.dtype, requires_grad=True
                )
                for site in has_gate
            }
            with gated(module, gates):
                value = loss(module, batch.to(weight.device))
            _refuse_broken(value)
            # The loss is a mean over images; times their number, every image counts alike in any batch.
            gradients = torch.autograd.grad(len(batch) * value, list(gates.values()))
            for site, gradient in zip(has_gate, gradients, strict=True):
                totals[site.group.name] += gradient.double().abs().sum(0).cpu()
    finally:
        if handle is not None:
            handle.remove()
        module.train(was_training)
    return {name: _array(total) for name, total in totals.items()}


def _claim(
    totals: Mapping[str, Tensor], module: nn.Module, args: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    """Add to every query the probability that it gives to an object, over the images."""
    objects = 1 - outputs[0].detach().double().softmax(2)[:, :, -1]
    totals["query_embed"].add_(objects.sum(0).cpu())


def _refuse_broken(value: Tensor) -> None:
    if not math.isfinite(value.item()):
        raise ModelError(
            f"the loss on images is {value.item()}: no gradient can be taken of it",
            expected="a finite number",
            cause="weights that are not finite, or images of another kind than the network was trained on",
            fix="score the network first (`vitesse diagnose`), or use --method l1, which needs no images",
        )
