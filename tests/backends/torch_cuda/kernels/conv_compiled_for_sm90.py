"""Compile convolutions and pooling of DETR-R50 at 800 × 1333 for compute capability 9.0; facts about each as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

# Run as a program: what stands beside it is found by its own name.
from compiled_for_sm90 import H100, Launch, Recorder, facts

from vitesse.backends.torch_cuda.kernels import conv, conv_pair, max_pool, stem_image, stem_pool

BFLOAT16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def layer(
    channels: int, height: int, width: int, filters: int, taps: int, stride: int, **more: Any
) -> tuple[Any, ...]:
    """A layer's kernel, tensors and attributes; `more`: dtype, image_dtype, residual (stride 1), out_scale."""
    dtype, residual = more.pop("dtype", torch.float16), more.pop("residual", False)
    x = torch.empty(1, channels, height, width, dtype=more.pop("image_dtype", dtype))
    weight = torch.empty(filters, channels, taps, taps, dtype=dtype)
    pad = taps // 2
    said = {"activation": "relu", "out_dtype": "bfloat16" if dtype == BFLOAT16 else "float16", **more}
    attributes = {"strides": (stride, stride), "pads": (pad,) * 4, **said}
    z = torch.empty(1, filters, height, width, dtype=torch.float16) if residual else None
    scale = torch.ones(filters) if dtype == E4M3 else None
    return conv.KERNEL, (x, weight, scale, torch.ones(filters), z), attributes


def pooling(dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.empty(1, 64, 400, 667, dtype=dtype)
    return max_pool.KERNEL, (x,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def stem_and_pool(
    images: int, height: int, width: int, dtype: torch.dtype = torch.float16
) -> tuple[Any, ...]:
    _, (x, weight, _, bias, _), attributes = layer(
        3, height, width, 64, 7, 2, dtype=dtype, image_dtype=torch.float32
    )
    window = {"window": (3, 3), "window_strides": (2, 2), "window_pads": (1, 1, 1, 1)}
    tensors = (x.expand(images, -1, -1, -1), weight, bias)
    return stem_pool.KERNEL, tensors, {**attributes, **window}


def ending(channels: int, others: int, filters: int, height: int, width: int, stride: int) -> tuple[Any, ...]:
    """The end of a block, whose shortcut reads an input of `stride` times its size."""
    x = torch.empty(1, channels, height, width, dtype=torch.float16)
    other = x.new_empty(1, others, height * stride, width * stride)
    weight = x.new_empty(filters, channels + others, 1, 1)
    tensors = (x, other, weight, torch.ones(filters))
    return conv_pair.KERNEL, tensors, {"strides": (stride, stride), "activation": "relu"}


CASES = {
    "conv stem": layer(3, 800, 1333, 64, 7, 2),
    "conv stem of float32": layer(3, 800, 1333, 64, 7, 2, image_dtype=torch.float32),
    "conv stem of E4M3": layer(3, 800, 1333, 64, 7, 2, out_scale=0.1),
    "conv stem of 3 by 3": layer(3, 800, 1333, 32, 3, 2),
    "conv 64": layer(64, 200, 334, 64, 3, 1),
    "conv 128 stride 2": layer(128, 200, 334, 128, 3, 2),
    "conv 256 with a residual": layer(256, 50, 84, 256, 3, 1, residual=True),
    "conv 512": layer(512, 25, 42, 512, 3, 1),
    "conv 256 of E4M3": layer(256, 50, 84, 256, 3, 1, dtype=E4M3, out_scale=0.1, residual=True),
    # The launcher makes constants of what is 1.
    "conv of one row": layer(64, 1, 40, 64, 3, 1),
    "conv of one column": layer(64, 40, 1, 64, 3, 2),
    "conv stem of one row": layer(3, 1, 40, 64, 7, 1),
    "conv shortcut": layer(256, 200, 334, 512, 1, 2),
    "conv pair of the first stage": ending(64, 64, 256, 200, 334, 1),
    "conv pair of the last stage": ending(512, 1024, 2048, 25, 42, 2),
    "conv pair of one column": ending(64, 128, 128, 40, 1, 2),
    "conv stem and pool": stem_and_pool(1, 800, 1333),
    "conv stem and pool of a batch": stem_and_pool(8, 800, 1333),
    "conv stem and pool of one row": stem_and_pool(1, 2, 40),
    "conv stem and pool of bfloat16": stem_and_pool(1, 800, 1333, BFLOAT16),
    "conv stem of bfloat16": layer(3, 800, 1333, 64, 7, 2, dtype=BFLOAT16),
    "conv 64 of bfloat16": layer(64, 200, 334, 64, 3, 1, dtype=BFLOAT16),
    "pool": pooling(torch.float16),
    "pool of bfloat16": pooling(BFLOAT16),
}


def launches(
    name: str, kernel: Any, tensors: tuple[Any, ...], attributes: dict[str, Any]
) -> list[tuple[str, Launch]]:
    """What the best tactics and the last would launch, for a stem all; what only prepares the image is named so."""
    found = []
    *better, last = kernel.tactics(tensors, attributes, H100)
    for tactic in (*(better if "stem" in name else better[:3]), last):
        kernel.prepare(tensors, attributes, tactic)(*tensors)
        *before, main = RECORDED
        found += [(f"before {name}: {tactic.text()}", one) for one in before]
        found.append((f"{name}: {tactic.text()}", main))
        RECORDED.clear()
    return found


RECORDED: list[Launch] = []
for name in ("taps", "boxes", "stem", "stem_rows"):
    setattr(conv, name, Recorder(getattr(conv, name), RECORDED))
stem_image.pack_pixels = Recorder(stem_image.pack_pixels, RECORDED)
stem_pool.stem_pool = Recorder(stem_pool.stem_pool, RECORDED)
conv_pair.pair = Recorder(conv_pair.pair, RECORDED)
max_pool.pool = Recorder(max_pool.pool, RECORDED)

if __name__ == "__main__":
    made = {name: facts(one) for case, layer in CASES.items() for name, one in launches(case, *layer)}
    json.dump(made, sys.stdout, indent=1)
