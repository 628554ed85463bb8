"""A network as if some of its units were gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from vitesse.compress.importance.gating import gated
from vitesse.compress.importance.units import Group, Kind, sites
from vitesse.errors import UsageError
from vitesse.sources.trainable import Trainable


@contextmanager
def masked(trainable: Trainable, group: Group, indices: Sequence[int]) -> Iterator[None]:
    """Run `trainable.module` without these units of `group`, for as long as the context is open.

    The outputs are those of a network from which the units were cut: a channel, an MLP unit or a head adds nothing, a
    layer gives back what it got. A query is seen by no other one, and its logits are −∞, so that no result is read
    from it; its row stays, because the shapes do. Contexts of different groups can be nested.

    Args:
        group: one of `groups(trainable)`.
        indices: which units, 0 … size − 1, in any order; none masks nothing.

    Raises:
        UsageError: the network has no such group, a unit does not exist, or every query is named: there is nothing
            left that could attend.
    """
    site = next((site for site in sites(trainable) if site.group == group), None)
    if site is None:
        raise UsageError(
            f"the network has no group {group.name!r} of {group.size} {group.kind}",
            expected="one of its groups, as `groups` lists them",
            cause="the group is that of another network, or of this one before it was pruned",
        )
    wrong = [index for index in indices if not 0 <= index < group.size]
    if wrong or (group.kind is Kind.QUERIES and len(set(indices)) == group.size):
        raise UsageError(
            f"{group.name}: masking {wrong or 'every query'} of {group.size}",
            expected=f"numbers from 0 to {group.size - 1}"
            + (", and at least one query left" if group.kind is Kind.QUERIES else ""),
        )
    weight = next(trainable.module.parameters())
    gate = torch.ones(1, group.size, device=weight.device, dtype=weight.dtype)
    gate[0, list(indices)] = 0
    with gated(trainable.module, {site: gate}):
        yield
