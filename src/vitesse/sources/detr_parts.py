"""The parts of a DETR that may have sizes of their own, and how large they are in a state dict.

Pruning makes layers of one stage and one stack unlike each other; `DETRConfig.uneven` lists those that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from vitesse.sources.detr import BODY, DETRConfig


@dataclass(frozen=True)
class Part:
    """A part by its name in `DETRConfig.uneven`.

    Args:
        weight: the tensor whose first axis has `rows` rows for each of its units.
        regular: its units where it is not uneven.
    """

    name: str
    weight: str
    rows: int
    regular: int


def uneven_parts(config: DETRConfig, state: Mapping[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """Return (name, units) of the parts of `state` that are not as the regular sizes of `config` say.

    A tensor that is missing, or has rows over, is left to the check of all names and shapes, which names it.
    """
    found = []
    for part in parts(config):
        tensor = state.get(part.weight)
        if tensor is None or tensor.ndim < 1:
            continue
        units = tensor.shape[0] // part.rows
        if units and units != part.regular:
            found.append((part.name, units))
    return tuple(found)


def parts(config: DETRConfig) -> Iterator[Part]:
    """Yield every part that may be uneven, from input to output."""
    yield Part(f"{BODY}conv1", f"{BODY}conv1.weight", 1, config.stem)
    inner = 2 if config.bottleneck else 1
    for stage, depth in enumerate(config.depths):
        name = f"{BODY}layer{stage + 1}"
        yield Part(name, f"{name}.0.conv{inner + 1}.weight", 1, config.channels[stage])
        for convolution in (f"{name}.{index}.conv{i + 1}" for index in range(depth) for i in range(inner)):
            yield Part(convolution, f"{convolution}.weight", 1, config.widths[stage])
    attentions = {"encoder": ("self_attn",), "decoder": ("self_attn", "multihead_attn")}
    layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    for stack, names in attentions.items():
        for layer in (f"transformer.{stack}.layers.{index}" for index in range(layers[stack])):
            for name in (f"{layer}.{attention}" for attention in names):
                yield Part(name, f"{name}.in_proj_weight", 3 * config.head_size, config.heads)
            yield Part(f"{layer}.linear1", f"{layer}.linear1.weight", 1, config.feedforward)
