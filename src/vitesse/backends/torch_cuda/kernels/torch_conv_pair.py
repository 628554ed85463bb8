"""`torch.conv_pair`: the shortcut and the block's end one after the other, as `torch.conv` computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.torch_conv import KERNEL as CONV


class TorchConvPair:
    """Kernel `torch.conv_pair`; see candidates.Kernel."""

    name = "torch.conv_pair"
    step = "ConvPair"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse what `torch.conv` does."""
        x, _, weight = tensors[:3]
        return CONV.refuses((x, weight), attributes, device)

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Offer what `torch.conv` does, for both alike."""
        x, _, weight = tensors[:3]
        return [Tactic(self.name, made.config) for made in CONV.tactics((x, weight), attributes, device)]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Part the weight; the call computes the shortcut, and the end with the shortcut as its residual."""
        x, other, weight, bias = [*tensors, None][:4]
        assert x is not None and other is not None and weight is not None  # refuses() has seen them
        own, shared = weight[:, : x.shape[1]], weight[:, x.shape[1] :]
        half = str(weight.dtype).removeprefix("torch.")
        shortcut = CONV.prepare(
            (other, shared), {"strides": attributes["strides"], "out_dtype": half}, tactic
        )
        # Only the type of the residual is read.
        like = torch.empty(0, dtype=weight.dtype, device="meta")
        rest = {name: value for name, value in attributes.items() if name != "strides"}
        end = CONV.prepare((x, own, None, bias, like), rest, tactic)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            (added,) = shortcut(given[1], None)
            return end(given[0], None, None, None, added)

        return run


KERNEL = TorchConvPair()
