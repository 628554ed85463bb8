"""`triton.norm_linear`: LayerNorm inside the matrix product that reads it; see gemm.gemm."""

from __future__ import annotations

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.linear import KERNEL as LINEAR
from vitesse.backends.torch_cuda.kernels.linear import computed, prepack
from vitesse.backends.torch_cuda.kernels.linear_configs import GemmConfig
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue

# Sums of x and of its square for every element of a tile of x are kept beside the accumulator.
LARGEST_TILE = 128 * 64


class TritonNormLinear:
    """Kernel `triton.norm_linear`; see candidates.Kernel. Its configurations are those of `triton.linear`."""

    name = "triton.norm_linear"
    step = "NormLinear"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse what `triton.linear` does."""
        return LINEAR.refuses(layer_of(tensors), attributes, device)

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Offer those of `triton.linear` in which one program sees whole rows of x, in tiles that leave registers."""
        offered = [
            GemmConfig.of(made.config) for made in LINEAR.tactics(layer_of(tensors), attributes, device)
        ]
        return [
            Tactic(self.name, config.document())
            for config in offered
            if config.split_k == 1
            and not config.persistent
            and config.block_m * max(config.block_n, config.block_k) <= LARGEST_TILE
        ]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Fold the norm's gain into the weight and its shift into the bias; the call computes the step."""
        _, gain, shift, weight, bias, _ = [*tensors, None, None][:6]
        assert gain is not None and weight is not None  # refuses() has seen them
        packed = prepack((weight.float() * gain.float()[:, None]).to(weight.dtype))
        column_sums = packed.float().sum(1)
        offset = torch.zeros(packed.shape[0], device=weight.device) if bias is None else bias.float()
        offset = (offset if shift is None else offset + shift.float() @ weight.float()).contiguous()
        config, epilogue = GemmConfig.of(tactic.config), Epilogue.of(attributes)
        epsilon = float(attributes.get("epsilon", 1e-5))

        def run(*given: Tensor | None) -> tuple[Tensor]:
            x, residual = given[0], given[5] if len(given) > 5 else None
            assert x is not None
            folded = {"bias": offset, "column_sums": column_sums, "epsilon": epsilon}
            return computed(x, packed, residual, epilogue, config, **folded)

        return run


def layer_of(tensors: Tensors) -> Tensors:
    """Return what a `Linear` of the same sizes would get; the normalised rows are as x is."""
    x, _, _, weight, bias, residual = [*tensors, None, None][:6]
    return x, weight, None, bias, residual


KERNEL = TritonNormLinear()
