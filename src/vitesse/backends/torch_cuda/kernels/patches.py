# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""`triton.patches`: patch embedding straight from the image, with positions and prefix tokens, in one kernel.

The convolution with stride = kernel is a matrix product whose rows are patches, gathered while they are loaded:
K is ordered (channel, row, column of the patch), and each row of a patch lies side by side in the image. Columns are
padded to a power of two (14 → 16) with zero weights, so that a block of K is a number of whole rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.dependence import launched_early, let_next_begin, wait_for_previous

WEIGHTS = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def embed(
    image,
    weight,  # [C · PATCH · COLUMNS, D]
    tokens,
    positions,
    out,
    BATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,  # D
    PREFIX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write BLOCK_M patches × BLOCK_N channels, or behind the last patches BLOCK_M prefix tokens."""
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    across: tl.constexpr = WIDTH // PATCH
    count: tl.constexpr = HEIGHT // PATCH * across
    tiles: tl.constexpr = (BATCH * count + BLOCK_M - 1) // BLOCK_M
    sides: tl.constexpr = (SIZE + BLOCK_N - 1) // BLOCK_N
    index = tl.program_id(0)
    columns = index % sides * BLOCK_N + tl.arange(0, BLOCK_N)
    wide = columns < SIZE
    if index >= tiles * sides:
        period: tl.constexpr = (
            PREFIX if PREFIX > 0 else 1
        )  # without tokens no program comes here, but it is compiled
        line = (index // sides - tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (line < BATCH * PREFIX)[:, None] & wide[None, :]
        given = tl.load(tokens + (line % period)[:, None] * SIZE + columns[None, :], inside, 0.0)
        row = (line // period * (PREFIX + count) + line % period).to(tl.int64)
        tl.store(out + row[:, None] * SIZE + columns[None, :], given.to(out.dtype.element_ty), inside)
    else:
        line = index // sides * BLOCK_M + tl.arange(0, BLOCK_M)
        here = line < BATCH * count
        number = line % count
        corner = (line // count).to(tl.int64) * (CHANNELS * HEIGHT * WIDTH)
        corner += number // across * (PATCH * WIDTH) + number % across * PATCH
        sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        depth: tl.constexpr = CHANNELS * PATCH * COLUMNS
        for start in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            x = k % COLUMNS
            y = k // COLUMNS % PATCH
            channel = k // (COLUMNS * PATCH)
            within = (x < PATCH) & (k < depth)
            at = corner[:, None] + (channel * (HEIGHT * WIDTH) + y * WIDTH + x)[None, :]
            pixels = tl.load(image + at, here[:, None] & within[None, :], 0.0).to(weight.dtype.element_ty)
            factors = tl.load(
                weight + k[:, None] * SIZE + columns[None, :], (k < depth)[:, None] & wide[None, :], 0.0
            )
            sums = tl.dot(pixels, factors, sums, input_precision=PRECISION)
        inside = here[:, None] & wide[None, :]
        sums += tl.load(positions + number[:, None] * SIZE + columns[None, :], inside, 0.0).to(tl.float32)
        row = (line // count * (PREFIX + count) + PREFIX + number).to(tl.int64)
        tl.store(out + row[:, None] * SIZE + columns[None, :], sums.to(out.dtype.element_ty), inside)


class TritonPatches:
    """The kernel above for one node; a configuration is block_m × block_n × block_k, num_warps and num_stages."""

    name = "triton.patches"
    step = "Patches"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why it cannot: types, an image that is not contiguous or not whole patches, an old GPU."""
        image, weight, *_ = _inputs(tensors)
        patch = attributes["patch"]
        if device.capability < (8, 0):
            return "compute capability {}.{}: needs 8.0".format(*device.capability)
        if image.dtype not in WEIGHTS or weight.dtype not in WEIGHTS:
            return f"types {image.dtype} and {weight.dtype}: needs float16, bfloat16 or float32"
        if not image.is_contiguous():
            return "the image is not contiguous"
        if image.shape[2] % patch or image.shape[3] % patch:
            return f"image of {image.shape[2]} × {image.shape[3]}: needs multiples of {patch}"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return block sizes, small ones where large ones leave multiprocessors idle."""
        image, weight, *_ = _inputs(tensors)
        rows = (
            image.shape[0] * (image.shape[2] // attributes["patch"]) * (image.shape[3] // attributes["patch"])
        )
        large = [(128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 256, 64, 8, 3)]
        small = [(64, 64, 64, 4, 4), (32, 64, 64, 4, 4), (64, 128, 64, 4, 3), (32, 32, 128, 4, 3)]
        if weight.dtype == torch.float32:
            chosen = [(64, 64, 32, 4, 3), (32, 64, 32, 4, 3), (128, 64, 32, 8, 3)]
        else:
            few = -(-rows // 128) * -(-weight.shape[0] // 128) < device.sms
            chosen = [*small, *large[:1]] if few else [*large, *small[:1], *small[2:3]]
        names = ("block_m", "block_n", "block_k", "num_warps", "num_stages")
        return [Tactic(self.name, dict(zip(names, sizes, strict=True))) for sizes in chosen]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Lay the weight out as [C · patch · columns, D], columns padded with zeros; tokens and positions stay."""
        _, weight, tokens, positions = _inputs(tensors)
        config = dict(tactic.config)
        dtype = getattr(torch, attributes.get("out_dtype", "float16"))
        columns = int(triton.next_power_of_2(weight.shape[-1]))
        packed = F.pad(weight, (0, columns - weight.shape[-1])).flatten(1).t().contiguous()
        tokens, positions = tokens.contiguous(), positions.contiguous()

        def run(*inputs: Tensor | None) -> tuple[Tensor]:
            image = inputs[0]
            assert image is not None
            return (_launch(image, packed, tokens, positions, attributes["patch"], dtype, config),)

        return run


KERNEL = TritonPatches()


def _launch(
    image: Tensor,
    packed: Tensor,
    tokens: Tensor,
    positions: Tensor,
    patch: int,
    dtype: torch.dtype,
    config: dict[str, Any],
) -> Tensor:
    batch, channels, height, width = image.shape
    prefix, count, size = tokens.shape[0], positions.shape[0], packed.shape[1]
    out = torch.empty((batch, prefix + count, size), dtype=dtype, device=image.device)
    block_m, block_n = config["block_m"], config["block_n"]
    tiles = -(-batch * count // block_m) + -(-batch * prefix // block_m)
    embed[(tiles * -(-size // block_n),)](
        *(image, packed, tokens, positions, out),
        BATCH=batch,
        CHANNELS=channels,
        HEIGHT=height,
        WIDTH=width,
        PATCH=patch,
        COLUMNS=packed.shape[0] // (channels * patch),
        SIZE=size,
        PREFIX=prefix,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=config["block_k"],
        STAGES=config["num_stages"],
        PRECISION="tf32x3" if packed.dtype == torch.float32 else "ieee",
        num_warps=config["num_warps"],
        **launched_early(image.device),
    )
    return out


def _inputs(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, weight, tokens, positions = tensors
    assert image is not None and weight is not None and tokens is not None and positions is not None
    return image, weight, tokens, positions
