"""A network → a smaller one with a share of its operations; the units that matter least are gone.

    importance ──▶ Plan: what gives way ──▶ channels, features (DependencyGraph), heads ──▶ a normal Trainable
                       ▲ operations of every layer, by the groups it reads and writes

What is left computes exactly what the whole network computes with the other units at zero.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitesse.compress.importance.units import Group, Kind, groups
from vitesse.compress.pruning.dependency import DependencyGraph
from vitesse.compress.pruning.flops import flops, flops_by_module, parameters
from vitesse.compress.pruning.heads import keep_decoder_layers, keep_heads
from vitesse.compress.pruning.plan import Candidate, Plan, Term
from vitesse.errors import ModelError, UsageError
from vitesse.sources.detr import Block, DETRConfig
from vitesse.sources.detr_parts import uneven_parts
from vitesse.sources.trainable import Trainable, with_weights
from vitesse.sources.vit import ViTConfig

Importance = Mapping[str, NDArray[np.float64]]
_DECODER = "transformer.decoder.layers"
_CUT = frozenset({Kind.CHANNELS, Kind.RESIDUAL, Kind.MLP, Kind.HEADS})


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Args:
        flops: operations of one image before and after.
        parameters: trainable numbers before and after.
        kept: group → (units left, units before), for every group that could give way.
    """

    trainable: Trainable
    flops: tuple[int, int]
    parameters: tuple[int, int]
    kept: Mapping[str, tuple[int, int]]

    @property
    def share(self) -> float:
        """Operations left, as a share of those before."""
        return self.flops[1] / self.flops[0]


def prune(
    trainable: Trainable,
    share: float,
    importance: Importance,
    *,
    multiple: int = 8,
    decoder_layers: int | None = None,
) -> Pruned:
    """Cut a network down to at most `share` of its operations, and as little below as whole multiples allow.

    Which group gives way is decided chunk by chunk: the one whose chunk loses least of the group's remaining
    importance per operation saved. Groups without scores stay whole; queries and encoder layers are never cut here.

    Args:
        trainable: is left as it is.
        share: of the operations of one image that stay, above 0 and at most 1.
        importance: group name (see `importance.units`) → score of each unit, ≥ 0; larger matters more.
        multiple: what is left of channels and features is a multiple of it; of heads, at least one stays.
        decoder_layers: keep only the first of a DETR's decoder layers; their operations count as cut.

    Raises:
        UsageError: a value out of range, importance of another network, or a share that cannot be reached: the error
            says what can.
    """
    _check(share, multiple)
    whole = flops(trainable)
    start = trainable if decoder_layers is None else _with_decoder_layers(trainable, decoder_layers)
    graph = DependencyGraph(start)
    plan = _plan(start, graph, _checked(trainable, importance), multiple)
    target = math.floor(share * whole)
    if plan.floor > target:
        raise _too_little(share, plan.floor / whole, multiple)
    plan.reduce_to(target)
    result = _cut(start, graph, plan)
    kept = {name: (plan.left[name], candidate.size) for name, candidate in plan.candidates.items()}
    if decoder_layers is not None:
        kept[_DECODER] = (decoder_layers, _detr_config(trainable).decoder_layers)
    return Pruned(result, (whole, flops(result)), (parameters(trainable), parameters(result)), kept)


def rebuilt(trainable: Trainable, config: DETRConfig | ViTConfig, state: Mapping[str, Tensor]) -> Trainable:
    """Return the network that cut tensors make.

    Raises:
        ModelError: they fit no network, because a unit was cut in one place and not in another it is read or added in.
    """
    if isinstance(config, DETRConfig):
        config = replace(config, uneven=())
        config = replace(config, uneven=uneven_parts(config, state))
    try:
        return with_weights(trainable, config, state)
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
        raise ModelError(
            f"the cut tensors fit no network: {'; '.join(wrong[:3])}",
            expected="every unit cut wherever it is written, added to or read",
            cause="a group was cut in one of its layers only",
        ) from error


def _plan(trainable: Trainable, graph: DependencyGraph, importance: Importance, multiple: int) -> Plan:
    candidates: list[Candidate] = []
    factors: dict[str, list[str]] = defaultdict(list)
    for group in _cuttable(trainable):
        if group.name not in importance:
            continue
        heads = group.kind is Kind.HEADS
        candidates.append(Candidate(group.name, importance[group.name], 1 if heads else multiple))
        touched = [group.name] if heads else [layer.name for layer in graph.layers(_root(trainable, group))]
        for layer in touched:
            factors[layer].append(group.name)
    if not candidates:
        raise UsageError(
            "the importance names no group that pruning can cut",
            expected=f"scores of {', '.join(group.name for group in list(_cuttable(trainable))[:3])}, …",
            cause="the method scores other units only: `bn` knows the channels of a ResNet and nothing of a ViT",
            fix="--method taylor",
        )
    by_module = flops_by_module(trainable)
    terms = [Term(by_module.get(layer, 0), tuple(names)) for layer, names in factors.items()]
    return Plan(candidates, terms, by_module[""])


def _cuttable(trainable: Trainable) -> Iterator[Group]:
    """Groups whose units can be cut alone: not channels that a grouped convolution mixes only within its groups."""
    config = trainable.config
    grouped = isinstance(config, DETRConfig) and config.groups > 1
    for group in groups(trainable):
        inside_block = group.kind is Kind.CHANNELS and ".layer" in group.name
        if group.kind in _CUT and not (grouped and inside_block):
            yield group


def _root(trainable: Trainable, group: Group) -> str:
    """Return a layer whose outputs are the units of the group."""
    if group.kind is not Kind.RESIDUAL:
        return group.name
    block = trainable.module.get_submodule(f"{group.name}.0")
    assert isinstance(block, Block)
    return f"{group.name}.0.conv{block.convolutions}"


def _cut(trainable: Trainable, graph: DependencyGraph, plan: Plan) -> Trainable:
    by_name = {group.name: group for group in groups(trainable)}
    given = [name for name, candidate in plan.candidates.items() if plan.left[name] < candidate.size]
    heads = [name for name in given if by_name[name].kind is Kind.HEADS]
    for name in (name for name in given if name not in heads):
        graph.cut(_root(trainable, by_name[name]), _complement(plan, name))
    state = graph.module.state_dict()
    for name in heads:
        keep_heads(state, name, by_name[name].size, plan.kept(name))
    config = trainable.config
    if isinstance(config, ViTConfig):
        left = {name: plan.left[name] for name in given}
        config = replace(config, uneven=tuple({**dict(config.uneven), **left}.items()))
    return rebuilt(trainable, config, state)


def _complement(plan: Plan, name: str) -> list[int]:
    return sorted(set(range(plan.candidates[name].size)) - set(plan.kept(name)))


def _with_decoder_layers(trainable: Trainable, layers: int) -> Trainable:
    config = _detr_config(trainable)
    if not 1 <= layers <= config.decoder_layers:
        raise UsageError(
            f"--decoder-layers {layers}", expected=f"1 to {config.decoder_layers}, which the model has"
        )
    state = keep_decoder_layers(trainable.module.state_dict(), layers)
    return rebuilt(trainable, replace(config, decoder_layers=layers), state)


def _detr_config(trainable: Trainable) -> DETRConfig:
    if not isinstance(trainable.config, DETRConfig):
        raise UsageError("--decoder-layers for a ViT", expected="a DETR, which has a decoder")
    return trainable.config


def _check(share: float, multiple: int) -> None:
    if not 0 < share <= 1:
        raise UsageError(
            f"--flops {share:g}",
            expected="the share of operations that stays, above 0 and at most 1, such as 0.7",
        )
    if multiple < 1:
        raise UsageError(f"--multiple {multiple}", expected="1 or more; 8, or 16 for INT8 and FP8")


def _checked(trainable: Trainable, importance: Importance) -> Importance:
    sizes = {group.name: group.size for group in groups(trainable)}
    for name, scores in importance.items():
        if name not in sizes or scores.shape != (sizes[name],):
            had = f"{sizes[name]} units" if name in sizes else "no such group"
            raise UsageError(
                f"the importance of {name!r} has shape {scores.shape}; the network has {had}",
                expected="importance of this very network",
                cause="it was computed for another model, or before this one was pruned",
                fix="run `vitesse importance` on this model",
            )
        if not np.isfinite(scores).all() or (scores < 0).any():
            raise UsageError(
                f"the importance of {name!r} is not finite or below 0",
                expected="finite numbers of 0 and more",
            )
    return importance


def _too_little(share: float, floor: float, multiple: int) -> UsageError:
    percent = math.ceil(1000 * floor) / 1000
    return UsageError(
        f"--flops {share:g} cannot be reached: {percent:g} is left when every group has its least units",
        expected=f"{percent:g} or more",
        cause=f"every group keeps {multiple} units and one head, and the width of the tokens is not cut",
        fix="a smaller --multiple, fewer --decoder-layers, or a smaller student: vitesse distill",
    )
