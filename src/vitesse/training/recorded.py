"""A network's passes as CUDA graphs: a small network trains as fast as the GPU computes, not as Python launches.

A step of a DETR of three million parameters launches thousands of kernels, each shorter than its launch. Recorded once,
the forward pass is one launch and the backward pass another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, ...]
# The function comes without types.
_record = cast(Callable[..., Callable[[Tensor], Outputs]], torch.cuda.make_graphed_callables)


class Recorded:
    """Calls `module`; on a GPU by replaying what the first call, with its shape and number format, has recorded.

    Batches of another shape (the last of an epoch, parts of one that memory did not hold) are computed as usual.
    A replay writes where the replay before it wrote: outputs and gradients are good until the next call.

    Args:
        module: (images) → tensors, without a wait for the GPU inside. Its parameters stay where they are in memory;
            it is in the mode, training or not, in which it is called later.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._replay: Callable[[Tensor], Outputs] | None = None
        self._for: tuple[object, ...] = ()

    def __call__(self, images: Tensor) -> Outputs:
        """Return what the module returns."""
        if images.device.type != "cuda":
            return cast(Outputs, self.module(images))
        form = (images.shape, images.device, _autocast())
        if self._replay is None:
            self._replay, self._for = self._recorded(images), form
        return self._replay(images) if form == self._for else cast(Outputs, self.module(images))

    def _recorded(self, images: Tensor) -> Callable[[Tensor], Outputs]:
        """Warm up, record, and leave running statistics as they were."""
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        enabled, number_format = _autocast()
        # Casts of weights that autocast keeps for a second use would be those of the recording for ever.
        with torch.autocast("cuda", dtype=number_format, enabled=enabled, cache_enabled=False):
            replay = _record(_Call(self.module), (images.clone(),), allow_unused_input=True)
        for buffer, old in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(old)
        return replay


class _Call(nn.Module):
    """The module under another name: recording replaces the forward of what it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Outputs:
        return cast(Outputs, self.module(images))


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
