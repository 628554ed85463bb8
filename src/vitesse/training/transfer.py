"""Small arrays on their way to the device that is trained on."""

from __future__ import annotations

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
