"""`torch.conv`: cuDNN's convolutions as PyTorch has them, with bias, residual and ReLU fused where it offers that.

It takes every Conv step of floating point, and is the measure of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.geometry import HALVES, Geometry, channels_last, epilogue_of
from vitesse.backends.torch_cuda.steps import ACTIVATIONS, E4M3, quantised


class TorchConv:
    """Kernel `torch.conv`; see candidates.Kernel."""

    name = "torch.conv"
    step = "Conv"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse E4M3 inputs, for which PyTorch has no convolution."""
        x, weight = tensors[:2]
        if x is None or weight is None:
            return "the input or the weight is absent"
        if x.dtype == E4M3 or weight.dtype == E4M3:
            return "PyTorch has no convolution of E4M3"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Offer cuDNN's own choice of an algorithm, and the one it measures to be fastest."""
        return [Tactic(self.name, {"benchmark": choice}) for choice in (1, 0)]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Lay the weight out channels_last and return the call.

        With `benchmark` cuDNN measures its algorithms at the first call and remembers them for this thread, so that a
        CUDA graph is captured on the thread that made a call before.
        """
        _, weight, scale, bias, residual = [*tensors, None, None, None][:5]
        assert weight is not None  # refuses() has seen it
        filters = channels_last(weight)
        shift = None if bias is None else bias.to(weight.dtype)
        benchmark = bool(tactic.config.get("benchmark", 0))
        call = _fused(filters, shift, scale, residual, tensors, attributes) or _unfused(
            filters, shift, scale, Geometry.of(tensors, attributes), attributes
        )

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x, _, _, _, z = [*given, None, None, None][:5]
            assert x is not None
            with _benchmarking(benchmark):
                return (call(channels_last(x.to(filters.dtype)), None if z is None else channels_last(z)),)

        return run


def _fused(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    tensors: Tensors,
    attributes: Attributes,
) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    """Return the one call that cuDNN makes of convolution, bias, residual and ReLU, or None where it has none."""
    found, epilogue = Geometry.of(tensors, attributes), epilogue_of(attributes)
    fits = (
        weight.is_cuda
        and weight.dtype in HALVES
        and epilogue.dtype == weight.dtype
        and epilogue.activation == "relu"
        and scale is None
        and found.symmetric
        and (residual is None or (residual.dtype == weight.dtype and epilogue.residual_first))
    )
    if not fits:
        return None
    shift = torch.zeros(found.filters, dtype=weight.dtype, device=weight.device) if bias is None else bias
    where = (list(found.strides), list(found.pads[:2]), list(found.dilations), found.group)

    def call(x: Tensor, z: Tensor | None) -> Tensor:
        if z is None:
            made: Tensor = torch.ops.aten.cudnn_convolution_relu(x, weight, shift, *where)
        else:
            made = torch.ops.aten.cudnn_convolution_add_relu(x, weight, z, 1.0, shift, *where)
        return channels_last(made)

    return call


def _unfused(
    weight: Tensor, bias: Tensor | None, scale: Tensor | None, found: Geometry, attributes: Attributes
) -> Callable[[Tensor, Tensor | None], Tensor]:
    epilogue = epilogue_of(attributes)
    act, out_scale = ACTIVATIONS[epilogue.activation], epilogue.out_scale
    top, left, bottom, right = found.pads

    def call(x: Tensor, z: Tensor | None) -> Tensor:
        padding = (top, left)
        if not found.symmetric:
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        inner = bias if scale is None else None
        y = F.conv2d(x, weight, inner, found.strides, padding, found.dilations, found.group)
        if scale is not None:
            y = y * scale.view(1, -1, 1, 1)
            y = y if bias is None else y + bias.view(1, -1, 1, 1)
        if z is not None and epilogue.residual_first:
            y, z = y + z, None
        y = act(y) if z is None else act(y) + z
        return channels_last(quantised(y, out_scale) if out_scale > 0 else y.to(epilogue.dtype))

    return call


@contextmanager
def _benchmarking(wanted: bool) -> Iterator[None]:
    """Let cuDNN measure its algorithms, or not, and leave PyTorch's setting as it was."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


KERNEL = TorchConv()
