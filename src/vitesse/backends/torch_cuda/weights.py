"""Constants of graphs on the device: each content once, however many nodes, plans and sessions read it."""

from __future__ import annotations

import hashlib
from threading import Lock

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.operators.constants import to_torch


class Constants:
    """Content → tensor, on one device and, for what decides shapes, on the host; any thread may ask."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lock = Lock()
        self._tensors: dict[tuple[str, str], Tensor] = {}

    def tensor(self, constant: ir.TensorProtocol, *, host: bool = False) -> Tensor:
        """Return a constant of a graph on the device, or on the CPU with `host`; it must not be written to.

        Raises:
            ModelError: its type has no counterpart in torch.
        """
        device = torch.device("cpu") if host else self.device
        head = f"{constant.dtype} {tuple(constant.shape.numpy())} ".encode()
        key = hashlib.sha256(head + constant.tobytes()).hexdigest(), str(device)
        with self._lock:
            if key not in self._tensors:
                self._tensors[key] = to_torch(constant).to(device)
            return self._tensors[key]

    @property
    def bytes(self) -> int:
        """How much they take on the device."""
        return sum(
            tensor.numel() * tensor.element_size()
            for (_, place), tensor in self._tensors.items()
            if place == str(self.device)
        )

    def clear(self) -> None:
        """Let go of all; plans that still run keep what they read."""
        with self._lock:
            self._tensors.clear()
