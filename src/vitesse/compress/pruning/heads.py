"""Cutting attention heads, and decoder layers, out of a state dict.

A head is rows of the query, key and value projections and columns of the output projection. DETR packs the three into
one matrix, which is why no graph of whole layers can cut it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def keep_heads(state: State, attention: str, heads: int, kept: Sequence[int]) -> None:
    """Leave only the heads `kept` of `heads` in the tensors of the module `attention`, in place."""
    packed = f"{attention}.in_proj_weight" in state
    inputs = (
        [f"{attention}.in_proj_"]
        if packed
        else [f"{attention}.{name}." for name in ("query", "key", "value")]
    )
    for name in (f"{prefix}{leaf}" for prefix in inputs for leaf in ("weight", "bias")):
        tensor = state[name]
        by_head = torch.unflatten(tensor, 0, (3 if packed else 1, heads, -1))
        state[name] = by_head[:, list(kept)].flatten(0, 2)
    output = f"{attention}.out_proj.weight" if packed else f"{attention}.out.weight"
    state[output] = torch.unflatten(state[output], 1, (heads, -1))[:, list(kept)].flatten(1, 2)


def keep_decoder_layers(state: State, layers: int) -> State:
    """Return the tensors without the decoder layers from `layers` on.

    The first ones are kept: each was trained to feed the heads with what the ones before it made, through the
    auxiliary losses, and none was trained without those before it.
    """
    number = re.compile(r"transformer\.decoder\.layers\.(\d+)\.")
    return {
        name: tensor
        for name, tensor in state.items()
        if not (found := number.match(name)) or int(found[1]) < layers
    }
