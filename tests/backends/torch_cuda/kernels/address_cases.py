"""Steps for every own kernel, at odd sizes that fill no tile and with every optional input somewhere; all zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

HALF, SINGLE, E4M3 = torch.float16, torch.float32, torch.float8_e4m3fn


@dataclass(frozen=True)
class Step:
    """A step for one kernel: the tensors in its order, and its attributes."""

    kernel: str
    tensors: tuple[Any, ...]
    attributes: dict[str, Any]


def zeros(*shape: int, dtype: Any = HALF) -> Any:
    return torch.zeros(shape, dtype=dtype)


def optional(shape: tuple[int, ...] | None, dtype: Any = HALF) -> Any:
    return None if shape is None else zeros(*shape, dtype=dtype)


def pixels(*shape: int, dtype: Any = HALF) -> Any:
    return zeros(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def product(x: Any, n: int, residual: tuple[int, ...] | None = None, scale: int = 0, **said: Any) -> Step:
    weight = zeros(x.shape[-1], n, dtype=x.dtype)
    vectors = optional((scale,) if scale else None, SINGLE), zeros(n)
    return Step("triton.linear", (x, weight, *vectors, optional(residual)), {"activation": "relu", **said})


def normed(shape: tuple[int, ...], n: int, residual: bool = False) -> Step:
    k = shape[-1]
    added = zeros(*shape[:-1], n) if residual else None
    return Step("triton.norm_linear", (zeros(*shape), zeros(k), zeros(k), zeros(k, n), zeros(n), added), {})


def normalised(shape: tuple[int, ...], residual: tuple[int, ...] | None, dtype: Any = HALF) -> Step:
    vectors = (zeros(shape[-1], dtype=dtype) for _ in range(2))
    tensors = (zeros(*shape, dtype=dtype), *vectors, optional(residual, dtype))
    return Step("triton.norm", tensors, {"out_scale": 0.1})


def attended(
    sizes: tuple[int, int, int, int, int, int],
    mask: tuple[int, ...] | None = None,
    mask_dtype: Any = SINGLE,
    **said: Any,
) -> Step:
    """Queries behind 8 foreign channels, keys and values in one tensor; sizes as test_attention.py has them."""
    images, heads, sq, sk, size, value_size = sizes
    q, kv = zeros(images, sq, 8 + heads * size), zeros(images, sk, heads * (size + value_size))
    attributes = {
        **{"heads": heads, "head_size": size, "value_size": value_size, "scale": 1.0},
        **{"q_offset": 8, "v_offset": heads * size, **said},
    }
    seen = None if mask is None else torch.ones(mask, dtype=mask_dtype)
    return Step("triton.attention", (q, kv, kv, seen), attributes)


def convolution(
    kernel: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    residual: tuple[int, ...] | None = None,
    dtype: Any = HALF,
    image_dtype: Any = None,
    **said: Any,
) -> Step:
    scale = zeros(weight[0], dtype=SINGLE)
    added = None if residual is None else pixels(*residual)
    tensors = (
        pixels(*x, dtype=image_dtype or dtype),
        zeros(*weight, dtype=dtype),
        scale,
        zeros(weight[0]),
        added,
    )
    return Step(kernel, tensors, {"activation": "relu", "pads": (0, 0, 0, 0), **said})


def conv_pairs(x: tuple[int, ...], other: tuple[int, ...], filters: int, strides: tuple[int, int]) -> Step:
    weight = zeros(filters, x[1] + other[1], 1, 1)
    tensors = (pixels(*x), pixels(*other), weight, zeros(filters))
    return Step("triton.conv_pair", tensors, {"activation": "relu", "strides": strides})


def embedded(images: int, patch: int, grid: tuple[int, int], tokens: int, dtype: Any = HALF) -> Step:
    down, across = grid
    rows = (zeros(count, 40, dtype=dtype) for count in (tokens, down * across))
    image = zeros(images, 3, patch * down, patch * across, dtype=SINGLE)
    tensors = (image, zeros(40, 3, patch, patch, dtype=dtype), *rows)
    return Step("triton.patches", tensors, {"patch": patch, "out_dtype": str(dtype)[6:]})


def three_in_one() -> Step:
    """Queries, keys and values of one packed tensor."""
    packed = zeros(2, 19, 3 * 32)
    attributes = {"heads": 2, "head_size": 16, "value_size": 16, "scale": 1.0, "k_offset": 32, "v_offset": 64}
    return Step("triton.attention", (packed,) * 3, attributes)


def apart() -> Step:
    """Queries, keys and values in tensors of their own, keys in whole blocks."""
    tensors = (zeros(1, 20, 16), zeros(1, 256, 16), zeros(1, 256, 16), torch.ones(20, 256))
    return Step("triton.attention", tensors, {"heads": 1, "head_size": 16, "value_size": 16, "scale": 1.0})


def stem_pooled(x: tuple[int, ...], filters: int, taps: int, pads: int, window_pads: tuple[int, ...]) -> Step:
    weight = zeros(filters, x[1], taps, taps)
    attributes = {"strides": (2, 2), "pads": (pads,) * 4, "dilations": (1, 1), "activation": "relu"}
    pool = {"window": (3, 3), "window_strides": (2, 2), "window_pads": window_pads}
    return Step("triton.stem_pool", (zeros(*x, dtype=SINGLE), weight, zeros(filters)), {**attributes, **pool})


STEM, SIDES = {"strides": (2, 2), "pads": (3, 3, 3, 3)}, {"pads": (1, 1, 1, 1)}
CASES = {
    "product: one row": product(zeros(1, 8), 8),
    "product: odd rows and columns": product(zeros(3, 11, 72), 37, (3, 11, 37)),
    "product: K of no 16 bytes": product(zeros(19, 37), 44, (19, 44), residual_first=1),
    "product: shares of K": product(zeros(19, 648), 40, (19, 40), 40, out_dtype="float32"),
    "product: tiles to walk over": product(zeros(133, 40), 136, (133, 136)),
    "product: residual shared by the batch": product(zeros(3, 11, 64), 40, (11, 40)),
    "product: rows apart": product(zeros(37, 200)[:, 8:80], 40),
    "product: rows that TMA cannot read": product(zeros(37, 75)[:, 1:73], 40),
    "product: E4M3": product(zeros(35, 400, dtype=E4M3), 40, (35, 40), 1, out_scale=0.1),
    "product: E4M3 of no 16 bytes": product(zeros(35, 37, dtype=E4M3), 24, None, 24),
    "norm and product": normed((2, 17, 88), 40, residual=True),
    "norm and product: K of no 16 bytes": normed((33, 37), 12),
    "1x1": convolution("triton.conv_1x1", (2, 24, 5, 7), (40, 24, 1, 1), (2, 40, 5, 7)),
    "1x1: E4M3": convolution("triton.conv_1x1", (1, 48, 5, 7), (24, 48, 1, 1), dtype=E4M3, out_scale=0.1),
    "1x1: filters of no 16 bytes": convolution("triton.conv_1x1", (1, 13, 3, 3), (11, 13, 1, 1)),
    "norm": normalised((3, 7, 72), None),
    "norm: residual": normalised((3, 7, 72), (3, 7, 72)),
    "norm: shared residual, odd width": normalised((3, 5, 33), (5, 33), SINGLE),
    "norm: one row": normalised((1, 200), (200,)),
    "norm: rows that fill no program": normalised((11, 520), (1, 11, 520)),
    "norm: wide": normalised((3, 2050), None, torch.bfloat16),
    "attention: heads of 8": attended((2, 2, 19, 41, 8, 8), (19, 41)),
    "attention: heads of 16": attended((1, 2, 21, 133, 16, 16)),
    "attention: heads of 64": attended((1, 1, 19, 133, 64, 64), out_scale=0.1),
    "attention: heads of 80": attended((1, 2, 17, 33, 80, 80)),
    "attention: values narrower": attended((2, 2, 9, 40, 24, 8)),
    "attention: one key": attended((2, 1, 5, 1, 16, 16), (5, 1), torch.bool),
    "attention: one query, split keys": attended((2, 1, 1, 330, 16, 16), (2, 1, 1, 330), torch.bool),
    "attention: split keys, mask by head": attended((1, 2, 9, 330, 16, 16), (1, 2, 9, 330), HALF),
    "attention: more queries than a tile": attended((1, 1, 67, 65, 16, 16), (1, 65)),
    "attention: one packed tensor": three_in_one(),
    "attention: whole blocks": apart(),
    "conv: odd sizes": convolution("triton.conv", (2, 16, 9, 11), (40, 16, 3, 3), (2, 40, 9, 11), **SIDES),
    "conv: channels of no multiple of 8": convolution("triton.conv", (1, 13, 5, 7), (11, 13, 3, 3), **SIDES),
    "conv: channels that fill no block": convolution("triton.conv", (1, 72, 5, 7), (72, 72, 2, 2)),
    "conv: stride and dilation": convolution(
        "triton.conv", (2, 32, 9, 12), (24, 32, 3, 3), strides=(2, 1), dilations=(1, 2), pads=(0, 2, 1, 1)
    ),
    "conv: one pixel read of four": convolution(
        "triton.conv", (2, 32, 9, 10), (48, 32, 1, 1), strides=(2, 2)
    ),
    "conv: E4M3": convolution("triton.conv", (1, 48, 6, 5), (16, 48, 3, 3), dtype=E4M3, **SIDES),
    "stem: 7 by 7": convolution(
        "triton.conv", (2, 3, 13, 17), (16, 3, 7, 7), (2, 16, 7, 9), image_dtype=SINGLE, **STEM
    ),
    "stem: wider than a tile": convolution(
        "triton.conv", (1, 1, 5, 151), (72, 1, 3, 3), strides=(1, 3), **SIDES
    ),
    "stem and pool: a strip and a half": stem_pooled((2, 3, 13, 17), 16, 7, 3, (1, 1, 1, 1)),
    "stem and pool: wider than a tile": stem_pooled((1, 1, 9, 139), 72, 3, 0, (1, 1, 0, 0)),
    "pair: odd sizes, stride 2": conv_pairs((2, 32, 5, 6), (2, 32, 9, 11), 40, (2, 2)),
    "pair: channels that fill no block": conv_pairs((1, 40, 3, 4), (1, 72, 5, 4), 13, (2, 1)),
    "pair: one pixel": conv_pairs((3, 16, 1, 1), (3, 32, 1, 1), 8, (1, 1)),
    "pool: 3 by 3": Step(
        "triton.max_pool",
        (pixels(2, 20, 9, 13),),
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    ),
    "pool: dilated": Step(
        "triton.max_pool",
        (pixels(1, 70, 7, 6, dtype=SINGLE),),
        {"kernel_shape": (3, 2), "dilations": (2, 3), "pads": (2, 0, 1, 3)},
    ),
    "quantise": Step("triton.quantise", (zeros(3, 25, 41), None), {"out_scale": 0.1}),
    "quantise: shared sum": Step("triton.quantise", (zeros(3, 25, 41), zeros(25, 41)), {"out_scale": 0.1}),
    "quantise: pixels": Step("triton.quantise", (pixels(2, 23, 9, 7), None), {"out_scale": 0.1}),
    "patches: 16": embedded(3, 16, (3, 3), 1),
    "patches: 14, five tokens": embedded(2, 14, (2, 3), 5),
    "patches: 7, no token": embedded(1, 7, (3, 5), 0, SINGLE),
}
