"""An image of few channels as packed pixels in memory: what stem_rows and stem_pool read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.kernels.geometry import Geometry
from vitesse.backends.torch_cuda.kernels.stem_rows import PACKED_AT_ONCE, PIXEL, Rows
from vitesse.backends.torch_cuda.kernels.stem_rows_program import pack_pixels


def packed_image(x: Tensor, found: Geometry, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] of any float → [B, H, pixels, PIXEL] of `dtype`, see stem_rows.Rows, on x's stream."""
    rows = Rows.of(found)
    shape = (found.batch, found.height, rows.pixels, PIXEL)
    image = torch.empty(shape, dtype=dtype, device=x.device)
    pack_pixels[(found.batch * found.height * math.ceil(rows.pixels / PACKED_AT_ONCE),)](
        x.contiguous(),
        image,
        found.height,
        found.width,
        rows.pixels,
        C=found.channels,
        LEFT=found.pads[1],
        BLOCK=PACKED_AT_ONCE,
        num_warps=4,
        **launched_early(x.device),
    )
    return image
