"""`torch.norm`: torch's LayerNorm with the sum and the E4M3 rounding as kernels of their own; always works."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.norm import outputs_wanted
from vitesse.backends.torch_cuda.steps import quantised


class TorchNorm:
    """torch.nn.functional.layer_norm, which computes 16-bit inputs in float32."""

    name = "torch.norm"
    step = "Norm"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "": it takes everything."""
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the only way."""
        return [Tactic(self.name)]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Cast weight and bias to the type of x, or all to float32 for an E4M3 output, which is rounded from it."""
        x, weight, *rest = tensors
        assert x is not None and weight is not None
        bias = rest[0] if rest else None
        want_y, want_total, want_eight = outputs_wanted(attributes)
        epsilon, out_scale = attributes.get("epsilon", 1e-5), attributes.get("out_scale", 0.0)
        dtype = torch.float32 if want_eight else x.dtype
        scale, shift = weight.to(dtype), None if bias is None else bias.to(dtype)

        def run(*inputs: Tensor | None) -> tuple[Tensor | None, ...]:
            given, *_, residual = [*inputs, None, None][:4]
            assert given is not None
            total = given if residual is None else (given.float() + residual.float()).to(given.dtype)
            wide = F.layer_norm(total.to(dtype), (total.shape[-1],), scale, shift, epsilon)
            return (
                wide.to(given.dtype) if want_y else None,
                total if want_total else None,
                quantised(wide, out_scale) if want_eight else None,
            )

        return run


KERNEL = TorchNorm()
