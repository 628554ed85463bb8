"""Small arrays on their way to the device that is trained on, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return the values as a tensor on `device`, without waiting for it.

    A GPU takes a copy from ordinary memory only when it has done all it was asked before; pinned memory is read later.
    """
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Arriving:
    """A tensor on its way to the host; see `fetched`."""

    host: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """Return it on the CPU when it is there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host


def fetched(tensor: Tensor) -> Arriving:
    """Send a tensor to the host without waiting for it: whatever is asked of a GPU afterwards is not waited for."""
    tensor = tensor.detach()
    if tensor.device.type != "cuda":
        return Arriving(tensor.cpu(), None)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return Arriving(host, arrived)
