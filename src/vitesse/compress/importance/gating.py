"""Gates: factors in front of everything that reads a unit. 1 leaves the network as it is, 0 is a network without it.

Between the two lies the derivative: with all gates at 1, the gradient of a loss by a gate is the sum of activation ×
gradient over all places of the unit, which is what Taylor importance asks for. So masking and scoring look at the
same places.

    channels   behind BatchNorm: ReLU of 0 is 0          residual   behind every sum of the stage
    mlp        what the second linear layer reads        heads      what the output projection reads
    layers     between what goes in and what comes out   queries    the weight as a key of self-attention; without it,
                                                                    its logits are −∞, which no result is read from
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitesse.compress.importance.units import Kind, Site


@contextmanager
def gated(module: nn.Module, gates: Mapping[Site, Tensor]) -> Iterator[None]:
    """Run the network with gates, for as long as the context is open.

    Args:
        gates: per site (1, size), or (images, size) with one gate an image; on the network's device.
    """
    with ExitStack() as stack:
        for site, gate in gates.items():
            for name in site.gates:
                handle = _HOOKS[site.group.kind](module.get_submodule(name), site, name, gate)
                stack.callback(handle.remove)
        yield


def _behind(part: nn.Module, site: Site, name: str, gate: Tensor) -> RemovableHandle:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output * gate[:, :, None, None]

    return part.register_forward_hook(hook)


def _before(part: nn.Module, site: Site, name: str, gate: Tensor) -> RemovableHandle:
    """(images, tokens, units · width): heads lie side by side, each as wide as the others."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        width = args[0].shape[2] // gate.shape[1]
        return (args[0] * gate.repeat_interleave(width, dim=1)[:, None], *args[1:])

    return part.register_forward_pre_hook(hook)


def _across(part: nn.Module, site: Site, name: str, gate: Tensor) -> RemovableHandle:
    at = site.gates.index(name)

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # A ViT's last block returns the first tokens only; `lerp` is exact at 0 and at 1.
        return torch.lerp(args[0][:, : output.shape[1]], output, gate[:, at, None, None])

    return part.register_forward_hook(hook)


def _query(part: nn.Module, site: Site, name: str, gate: Tensor) -> RemovableHandle:
    if name:
        return part.register_forward_pre_hook(_as_key(gate))

    def hook(_: nn.Module, __: Any, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gone = (gate == 0)[:, :, None]
        return tuple(
            output.masked_fill(gone, -torch.inf) if index % 2 == 0 else output
            for index, output in enumerate(outputs)
        )

    return part.register_forward_hook(hook)


def _as_key(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert len(args) == 3, "self-attention among queries has no mask of its own"
        return (*args, gate.log()[:, None, None])

    return hook


_HOOKS: Mapping[Kind, Callable[[nn.Module, Site, str, Tensor], RemovableHandle]] = {
    Kind.CHANNELS: _behind,
    Kind.RESIDUAL: _behind,
    Kind.MLP: _before,
    Kind.HEADS: _before,
    Kind.LAYERS: _across,
    Kind.QUERIES: _query,
}
