"""The running average of the weights, which is what is scored and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

# The function comes without types.
_averaging: Callable[[float], Callable[[list[Tensor], list[Tensor], int], None]] = get_ema_multi_avg_fn


def decay_at(step: int, decay: float) -> float:
    """The decay of update `step`, from 1: min(decay, (1 + step) / (10 + step)).

    The first averages would otherwise be the starting weights and little else.
    """
    return min(decay, (1 + step) / (10 + step))


class Average:
    """Exponential moving average of a module's floating-point state; everything else of it is copied.

    Args:
        module: on its device already; its tensors are read at every update.
        decay: 0 up to below 1; with 0 the average is the module itself.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live: dict[str, Tensor] = module.state_dict()
        self._values = {name: tensor.clone() for name, tensor in self._live.items()}
        self._averaged = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        self._copied = [name for name in self._live if name not in set(self._averaged)]

    def update(self, step: int) -> None:
        """Take in the module's state after step `step`, from 1."""
        average = _averaging(decay_at(step, self._decay))
        values = [self._values[name] for name in self._averaged]
        average(values, [self._live[name] for name in self._averaged], step)
        for name in self._copied:
            self._values[name].copy_(self._live[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average while the block runs, and its own state again afterwards, bit for bit."""
        own = {name: tensor.clone() for name, tensor in self._live.items()}
        self._fill(self._live, self._values)
        try:
            yield
        finally:
            self._fill(self._live, own)

    def state(self) -> Mapping[str, Tensor]:
        """The average, by the names of the module's state_dict; live tensors, not copies."""
        return self._values

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, which a call of `state()` returned."""
        self._fill(self._values, state)

    @staticmethod
    @torch.no_grad()
    def _fill(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])
