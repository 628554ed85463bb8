"""`triton.conv_pair`: the end of a residual block and its shortcut in one kernel, which writes no shortcut."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.conv_configs import ConvConfig, choices, tiles_of
from vitesse.backends.torch_cuda.kernels.conv_pair_program import pair
from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.kernels.epilogue import approximate
from vitesse.backends.torch_cuda.kernels.geometry import HALVES, Geometry, channels_last, epilogue_of
from vitesse.backends.torch_cuda.kernels.geometry import pair as both
from vitesse.backends.torch_cuda.kernels.linear import MOST_ELEMENTS
from vitesse.backends.torch_cuda.steps import E4M3


class TritonConvPair:
    """Kernel `triton.conv_pair`; see candidates.Kernel. Inputs and weight in 16 bits."""

    name = "triton.conv_pair"
    step = "ConvPair"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse float32, types that differ, old GPUs, and tensors beyond 32-bit offsets."""
        x, other, weight = tensors[:3]
        if x is None or other is None or weight is None:
            return "an input or the weight is absent"
        if not (x.dtype == other.dtype == weight.dtype) or weight.dtype not in HALVES:
            return f"takes float16 and bfloat16, all of one type, not {x.dtype}, {other.dtype} and {weight.dtype}"
        needed = (8, 9) if epilogue_of(attributes).dtype == E4M3 else (8, 0)
        if device.capability < needed:
            return f"needs compute capability {needed[0]}.{needed[1]}, this is {device.capability}"
        largest = max(x.numel(), other.numel(), weight.numel(), _product(tensors).pixels * weight.shape[0])
        return "" if 0 < largest <= MOST_ELEMENTS else f"{largest} elements in one tensor"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the tiles that conv_configs ranks highest for one product as deep as both together."""
        found = _product(tensors)
        made = choices(found, 2, device.sms, descriptors=False)
        return [Tactic(self.name, config.document()) for config in made]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack weight and bias; the call computes the step."""
        x, other, weight, bias = [*tensors, None][:4]
        assert x is not None and other is not None and weight is not None  # refuses() has seen them
        config, found = ConvConfig.of(tactic.config), _product(tensors)
        own, shared = x.shape[1], other.shape[1]
        packed = _packed(weight, own, config)
        offsets = None if bias is None else bias.float().contiguous()
        epilogue, (down, across) = epilogue_of(attributes), both(attributes["strides"])
        inverse = 1.0 / epilogue.out_scale if epilogue.out_scale > 0 else 1.0

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            first, second = given[:2]
            assert first is not None and second is not None
            out = found.output(epilogue.dtype, first.device)
            pair[(tiles_of(config, found),)](
                channels_last(first),
                channels_last(second),
                packed,
                offsets,
                out,
                inverse,
                found.pixels,
                second.shape[2],
                second.shape[3],
                found.out_height,
                found.out_width,
                C=own,
                C_PADDED=_padded(own, config),
                OTHER=shared,
                OTHER_PADDED=_padded(shared, config),
                N=found.filters,
                STRIDE_Y=down,
                STRIDE_X=across,
                ACTIVATION=epilogue.activation,
                APPROXIMATE=approximate(epilogue.dtype),
                BLOCK_M=config.block_m,
                BLOCK_N=config.block_n,
                BLOCK_K=config.block_k,
                GROUP=config.group,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                **launched_early(first.device),
            )
            return (out,)

        return run


def _product(tensors: Tensors) -> Geometry:
    """The sizes of one 1x1 convolution over the channels of both inputs."""
    x, _, weight = tensors[:3]
    assert x is not None and weight is not None
    joined = x.new_empty((x.shape[0], weight.shape[1], *x.shape[2:]), device="meta")
    return Geometry.of((joined, weight), {})


def _padded(channels: int, config: ConvConfig) -> int:
    return math.ceil(channels / config.block_k) * config.block_k


def _packed(weight: Tensor, own: int, config: ConvConfig) -> Tensor:
    """[O, C + C₂, 1, 1] → [O padded to block_n, C padded to block_k and C₂ padded to block_k]."""
    rows = weight.flatten(1)
    parts = [F.pad(part, (0, -part.shape[1] % config.block_k)) for part in (rows[:, :own], rows[:, own:])]
    return F.pad(torch.cat(parts, 1), (0, 0, 0, -len(rows) % config.block_n)).contiguous()


KERNEL = TritonConvPair()
