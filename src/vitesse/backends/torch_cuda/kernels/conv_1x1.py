"""`triton.conv_1x1`: a convolution that reads one pixel is a matrix product over the pixels, by gemm.py's kernels."""

from __future__ import annotations

from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.geometry import Geometry, channels_last, epilogue_of
from vitesse.backends.torch_cuda.kernels.linear import KERNEL as LINEAR
from vitesse.backends.torch_cuda.kernels.linear import Counters, launch
from vitesse.backends.torch_cuda.kernels.linear_configs import GemmConfig


class TritonConv1x1:
    """Kernel `triton.conv_1x1`; see candidates.Kernel. What it takes and offers is what `triton.linear` does."""

    name = "triton.conv_1x1"
    step = "Conv"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse what is no matrix product of adjacent pixels, and what `triton.linear` refuses."""
        if tensors[0] is None or tensors[1] is None:
            return "the input or the weight is absent"
        found = Geometry.of(tensors, attributes)
        if not found.pointwise:
            return f"{found.kernel} taps, strides {found.strides}, pads {found.pads}: no product of adjacent pixels"
        if found.group != 1:
            return f"{found.group} groups"
        return LINEAR.refuses(_rows(tensors), attributes, device)

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the configurations of `triton.linear` for [pixels, C] · [C, O]."""
        return [Tactic(self.name, made.config) for made in LINEAR.tactics(_rows(tensors), attributes, device)]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack weight, scale and bias; the call computes the step."""
        _, weight, scale, bias, _ = [*tensors, None, None, None][:5]
        assert weight is not None  # refuses() has seen it
        config = GemmConfig.of(tactic.config)
        found = Geometry.of(tensors, attributes)
        packed = weight.flatten(1).contiguous()
        factors = None if scale is None else scale.float().expand(found.filters).contiguous()
        offsets = None if bias is None else bias.float().contiguous()
        epilogue = epilogue_of(attributes)
        arrived = Counters(config, found.pixels, found.filters)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x, _, _, _, residual = [*given, None, None, None][:5]
            assert x is not None
            out = found.output(epilogue.dtype, x.device)
            launch(
                _pixels(x),
                packed,
                scale=factors,
                bias=offsets,
                residual=None if residual is None else _pixels(residual),
                activation=epilogue.activation,
                residual_first=epilogue.residual_first,
                out=_pixels(out),
                out_scale=epilogue.out_scale,
                config=config,
                arrived=arrived.here(x.device),
            )
            return (out,)

        return run


def _pixels(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B · H · W, C]; a view where x is channels_last."""
    return channels_last(x).permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _rows(tensors: Tensors) -> Tensors:
    """Return the tensors of the same step as `Linear` has them: x [M, C], weight [C, O], residual [M, O]."""
    x, weight, scale, bias, residual = [*tensors, None, None, None][:5]
    assert x is not None and weight is not None
    # Only shapes and types are read, so that nothing is converted here.
    rows = x.new_empty((x.shape[0] * x.shape[2] * x.shape[3], x.shape[1]), device="meta")
    added = None if residual is None else residual.new_empty((rows.shape[0], weight.shape[0]), device="meta")
    return (rows, weight.flatten(1).t(), scale, bias, added)


KERNEL = TritonConv1x1()
