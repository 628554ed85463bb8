"""`triton.conv`: convolutions in 16 bits or E4M3, NHWC, with bias, residual and activation in the epilogue."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.conv_configs import (
    BOXES,
    ROWS,
    STEM,
    STEM_DEPTH,
    ConvConfig,
    choices,
    stem_choices,
    tiles_of,
)
from vitesse.backends.torch_cuda.kernels.conv_program import boxes, taps
from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.kernels.epilogue import approximate
from vitesse.backends.torch_cuda.kernels.geometry import HALVES, Geometry, channels_last, epilogue_of
from vitesse.backends.torch_cuda.kernels.linear import MOST_ELEMENTS, TMA_BYTES
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue
from vitesse.backends.torch_cuda.kernels.stem_image import packed_image
from vitesse.backends.torch_cuda.kernels.stem_program import stem
from vitesse.backends.torch_cuda.kernels.stem_rows import PIXEL, Rows, packed_filters
from vitesse.backends.torch_cuda.kernels.stem_rows_program import stem_rows
from vitesse.backends.torch_cuda.steps import E4M3

# A filter of so few channels and so many values in all is one product for all taps.
STEM_CHANNELS, STEM_VALUES = 4, 512


class TritonConv:
    """Kernel `triton.conv`; see candidates.Kernel. Any taps, strides, pads and dilations; one group."""

    name = "triton.conv"
    step = "Conv"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse groups, float32, old GPUs, and tensors beyond 32-bit offsets."""
        x, weight = tensors[:2]
        if x is None or weight is None:
            return "the input or the weight is absent"
        found = Geometry.of(tensors, attributes)
        if found.group != 1:
            return f"{found.group} groups"
        if found.pointwise:
            return "a matrix product: triton.conv_1x1 takes it"
        if weight.dtype not in (*HALVES, E4M3):
            return f"takes float16, bfloat16 and float8_e4m3fn, not {weight.dtype}"
        if x.dtype != weight.dtype and not (
            _is_stem(found, weight) and x.dtype.is_floating_point and x.dtype != E4M3
        ):
            return f"x is {x.dtype}, its weight {weight.dtype}"
        needed = (8, 9) if E4M3 in (x.dtype, epilogue_of(attributes).dtype) else (8, 0)
        if device.capability < needed:
            return f"needs compute capability {needed[0]}.{needed[1]}, this is {device.capability}"
        largest = max(x.numel(), weight.numel(), found.pixels * found.filters)
        return "" if 0 < largest <= MOST_ELEMENTS else f"{largest} elements in one tensor"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the configurations that conv_configs ranks highest for this shape and device."""
        _, weight, _, _, residual = [*tensors, None, None, None][:5]
        assert weight is not None  # refuses() has seen it
        found = Geometry.of(tensors, attributes)
        if _is_stem(found, weight):
            return [Tactic(self.name, config.document()) for config in stem_choices(found)]
        size = weight.dtype.itemsize
        readable = device.capability >= (9, 0) and found.channels * size % TMA_BYTES == 0
        added = residual is not None
        made = choices(found, size, device.sms, residual=added, descriptors=readable)
        return [Tactic(self.name, config.document()) for config in made]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack weight, scale and bias; the call computes the step."""
        _, weight, scale, bias, _ = [*tensors, None, None, None][:5]
        assert weight is not None
        config = ConvConfig.of(tactic.config)
        found = Geometry.of(tensors, attributes)
        packed = _packed(weight, found, config)
        factors = None if scale is None else scale.float().expand(found.filters).contiguous()
        offsets = None if bias is None else bias.float().contiguous()
        epilogue = epilogue_of(attributes)
        launch = _LAUNCHES.get(config.program, _launch_taps)
        constants = _constants(found, epilogue)
        inverse = 1.0 / epilogue.out_scale if epilogue.out_scale > 0 else 1.0

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            x, _, _, _, residual = [*given, None, None, None][:5]
            assert x is not None
            out = found.output(epilogue.dtype, x.device)
            added = None if residual is None else channels_last(residual)
            launch(x, (packed, factors, offsets, added, out, inverse), found, config, constants)
            return (out,)

        return run


def _is_stem(found: Geometry, weight: Tensor) -> bool:
    values = found.channels * found.taps
    return found.channels <= STEM_CHANNELS and values <= STEM_VALUES and weight.dtype in HALVES


def _packed(weight: Tensor, found: Geometry, config: ConvConfig) -> Tensor:
    """Return the weight as the program of a configuration reads it."""
    if config.program == ROWS:
        return packed_filters(weight, found, config.block_k)
    return _packed_stem(weight, config) if config.program == STEM else _packed_taps(weight, config)


def _packed_taps(weight: Tensor, config: ConvConfig) -> Tensor:
    """[O, C, KH, KW] → [O padded to block_n, KH · KW · C padded to block_k]."""
    filters, channels = weight.shape[:2]
    rows = weight.permute(0, 2, 3, 1).reshape(filters, -1, channels)
    # Padded as bytes: not every device pads E4M3, and zero is zero in all types.
    plain = rows.view(torch.uint8) if weight.dtype == E4M3 else rows
    more = (0, -channels % config.block_k, 0, 0, 0, -filters % config.block_n)
    return F.pad(plain, more).view(weight.dtype).flatten(1).contiguous()


def _packed_stem(weight: Tensor, config: ConvConfig) -> Tensor:
    """[O, C, KH, KW] → [O padded to block_n, C · KH · KW padded to STEM_DEPTH]."""
    rows = weight.flatten(1)
    return F.pad(rows, (0, -rows.shape[1] % STEM_DEPTH, 0, -rows.shape[0] % config.block_n)).contiguous()


def _constants(found: Geometry, epilogue: Epilogue) -> dict[str, Any]:
    """Return what all programs know when they are compiled."""
    return {
        "N": found.filters,
        "TOP": found.pads[0],
        "LEFT": found.pads[1],
        "DILATION_Y": found.dilations[0],
        "DILATION_X": found.dilations[1],
        "ACTIVATION": epilogue.activation,
        "APPROXIMATE": approximate(epilogue.dtype),
        "RESIDUAL_FIRST": epilogue.residual_first,
    }


def _launching(config: ConvConfig, device: torch.device) -> dict[str, Any]:
    """Return what all launches have: the tile's filters and channels, warps, stages, dependence."""
    return {
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **launched_early(device),
    }


def _launch_taps(
    x: Tensor, operands: Any, found: Geometry, config: ConvConfig, constants: dict[str, Any]
) -> None:
    channels = math.ceil(found.channels / config.block_k) * config.block_k
    taps[(tiles_of(config, found),)](
        channels_last(x),
        *operands,
        found.pixels,
        found.height,
        found.width,
        found.out_height,
        found.out_width,
        C=found.channels,
        C_PADDED=channels,
        TAPS=found.taps,
        TAPS_X=found.kernel[1],
        STRIDE_Y=found.strides[0],
        STRIDE_X=found.strides[1],
        BLOCK_M=config.block_m,
        GROUP=config.group,
        **constants,
        **_launching(config, x.device),
    )


def _launch_boxes(
    x: Tensor, operands: Any, found: Geometry, config: ConvConfig, constants: dict[str, Any]
) -> None:
    rows = config.block_m // config.box_x
    packed = operands[0]
    boxes[(tiles_of(config, found),)](
        TensorDescriptor.from_tensor(
            channels_last(x).permute(0, 2, 3, 1), [1, rows, config.box_x, config.block_k]
        ),
        TensorDescriptor.from_tensor(packed, [config.block_n, config.block_k]),
        *operands[1:],
        found.out_height,
        found.out_width,
        C_PADDED=packed.shape[1] // found.taps,
        TAPS=found.taps,
        TAPS_X=found.kernel[1],
        BLOCK_Y=rows,
        BLOCK_X=config.box_x,
        **constants,
        **_launching(config, x.device),
    )


def _launch_stem(
    x: Tensor, operands: Any, found: Geometry, config: ConvConfig, constants: dict[str, Any]
) -> None:
    across = math.ceil(found.filters / config.block_n)
    stem[(tiles_of(config, found) // across, across)](
        x.contiguous(),
        *operands,
        found.height,
        found.width,
        found.out_height,
        found.out_width,
        C=found.channels,
        K_PADDED=operands[0].shape[1],
        TAPS_Y=found.kernel[0],
        TAPS_X=found.kernel[1],
        STRIDE_Y=found.strides[0],
        STRIDE_X=found.strides[1],
        BLOCK_M=config.block_m,
        **constants,
        **_launching(config, x.device),
    )


def _launch_rows(
    x: Tensor, operands: Any, found: Geometry, config: ConvConfig, constants: dict[str, Any]
) -> None:
    rows = Rows.of(found)
    image = packed_image(x, found, operands[0].dtype)
    across = math.ceil(found.filters / config.block_n)
    stem_rows[(tiles_of(config, found) // across, across)](
        image,
        *operands,
        found.height,
        rows.pixels * PIXEL,
        found.out_height,
        found.out_width,
        TAPS_Y=found.kernel[0],
        ROW_DEPTH=rows.depth,
        STRIDE_Y=found.strides[0],
        STRIDE_X=found.strides[1],
        BLOCK_M=config.block_m,
        **{name: value for name, value in constants.items() if name not in ("LEFT", "DILATION_X")},
        **_launching(config, x.device),
    )


_LAUNCHES = {STEM: _launch_stem, ROWS: _launch_rows, BOXES: _launch_boxes}

KERNEL = TritonConv()
