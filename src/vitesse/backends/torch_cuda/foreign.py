"""Arrays of other libraries on the GPU, taken as torch tensors without a copy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vitesse.errors import DataError


def tensor_on(device: torch.device, name: str, value: object) -> Tensor:
    """Return a tensor on a device for a torch tensor, or what has `__dlpack__` or `__cuda_array_interface__`.

    Raises:
        DataError: it is none of these, or lies elsewhere; `name` is the feed's.
    """
    try:
        tensor = _tensor(device, value)
    except Exception as error:  # libraries raise what they like from their side of the protocols
        raise DataError(
            f"the feed {name!r} of type {type(value).__name__} cannot be taken: {error}",
            expected=f"a tensor on {device}, by DLPack or __cuda_array_interface__",
        ) from error
    if tensor is None or tensor.device != device:
        where = "no tensor" if tensor is None else f"on {tensor.device}"
        raise DataError(
            f"the feed {name!r} of type {type(value).__name__} is {where}",
            expected=f"a tensor on {device}",
            fix="session.run(feeds) copies numpy arrays to the GPU",
        )
    return tensor


def _tensor(device: torch.device, value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if hasattr(value, "__dlpack__"):
        # DLPack makes the producer's stream wait-free: torch's current stream is told to wait for it.
        made: Tensor = from_dlpack(value)
        return made
    if hasattr(value, "__cuda_array_interface__"):
        return torch.as_tensor(value, device=device)
    return None
