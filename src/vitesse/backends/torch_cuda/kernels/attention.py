"""`triton.attention`: own attention on packed tensors, for the short and odd sequences of vision transformers.

Library kernels are written for long sequences: at 197 tokens they compute 256 × 256 scores, and what they write has
to be cast once more for an E4M3 reader. This one takes 208 keys, and writes [B, Sq, H · Dv] in the type that is read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels import attention_kernel
from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.steps import E4M3

INPUTS = (torch.float16, torch.bfloat16)
MASKS = (torch.bool, *INPUTS, torch.float32)
# Channels of a head: of a matrix product in Triton, and of this kernel.
NARROWEST, WIDEST = 16, 256
# What one program may take of the 227 KB that it can address on compute capability 9.0, by the estimate of `_shared`.
SHARED_BYTES = 160 * 1024
AT_MOST, MOST_SPLIT = 12, 4


class TritonAttention:
    """The kernels of attention_kernel.py for one node.

    A configuration is block_m (queries) × block_n (keys) of one program, splits (programs that share the keys of
    a head), tma (0 or 1: keys and values come by the tensor memory accelerator), num_warps and num_stages.
    """

    name = "triton.attention"
    step = "Attention"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why it cannot: types, sizes above 256, a scale that is not positive, an old GPU."""
        q, k, v, mask = _inputs(tensors)
        if device.capability < (8, 0):
            return f"compute capability {device.capability[0]}.{device.capability[1]}: needs 8.0"
        if attributes.get("out_scale", 0.0) > 0 and device.capability < (8, 9):
            return (
                f"E4M3 output on compute capability {device.capability[0]}.{device.capability[1]}: needs 8.9"
            )
        if q.dtype not in INPUTS or not q.dtype == k.dtype == v.dtype:
            return f"types {q.dtype}, {k.dtype}, {v.dtype}: needs float16 or bfloat16 for all"
        if mask is not None and (mask.dtype not in MASKS or mask.ndim > 4):
            return f"mask of type {mask.dtype} and shape {tuple(mask.shape)}: needs bool or float, at most four axes"
        if max(attributes["head_size"], attributes["value_size"]) > WIDEST:
            return f"heads of {attributes['head_size']} and {attributes['value_size']} channels: at most {WIDEST}"
        if not attributes["scale"] > 0:
            return f"scale {attributes['scale']}: needs a positive one"
        if any(x.stride(-1) != 1 for x in (q, k, v)):
            return "channels do not lie side by side in memory"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return block sizes for these lengths: small blocks of queries and split keys where programs are few."""
        q, k, _, _ = _inputs(tensors)
        sq, sk = q.shape[1], k.shape[1]
        around = attributes["heads"] * max(q.shape[0], k.shape[0])
        tma = int(device.capability >= (9, 0) and _blocks_fit(tensors, attributes))
        whole, split = [], []
        for block_m, block_n, warps, stages in _blocks(sq, sk, around, device.sms):
            if _shared(attributes, block_n, stages, q.dtype.itemsize) <= SHARED_BYTES:
                programs = -(-sq // block_m) * around
                whole.append((1, (block_m, block_n, warps, stages)))
                for parts in _splits(programs, sk // block_n, device.sms):
                    distance = abs(programs * parts - 2 * device.sms)
                    split.append((distance, parts, (block_m, block_n, warps, stages)))
        # A split needs a second kernel; the best guess keeps every multiprocessor busy with two programs.
        split.sort(key=lambda one: one[0])
        few = [one[1:] for one in split[:MOST_SPLIT]]
        kept = whole[: AT_MOST - len(few)] + few
        names = ("block_m", "block_n", "num_warps", "num_stages")
        return [
            Tactic(self.name, {**dict(zip(names, blocks, strict=True)), "splits": splits, "tma": tma})
            for splits, blocks in kept
        ]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Return the call: one kernel, or two with split keys. Nothing is prepacked."""
        config = dict(tactic.config)
        given = dict(attributes)

        def run(*inputs: Tensor | None) -> tuple[Tensor]:
            return (_launch(inputs, given, config),)

        return run


KERNEL = TritonAttention()


def _launch(tensors: Tensors, attributes: Attributes, config: dict[str, Any]) -> Tensor:
    q, k, v, mask = _inputs(tensors)
    heads, size, value_size = attributes["heads"], attributes["head_size"], attributes["value_size"]
    batch, sq, sk = max(q.shape[0], k.shape[0]), q.shape[1], k.shape[1]
    out_scale = attributes.get("out_scale", 0.0)
    inverse_scale = 1.0 / out_scale if out_scale > 0 else 1.0
    dtype = E4M3 if out_scale > 0 else getattr(torch, attributes.get("out_dtype", "float16"))
    out = torch.empty((batch, sq, heads * value_size), dtype=dtype, device=q.device)
    block_m, block_n, splits = config["block_m"], config["block_n"], config["splits"]
    q, k, v = (
        x[..., attributes.get(f"{name}_offset", 0) :] for name, x in zip("qkv", (q, k, v), strict=True)
    )
    width, value_width = _power(size), _power(value_size)
    given, strides, kind = _mask(mask, (batch, heads, sq, sk))
    partial = rows = out
    if splits > 1:
        partial = torch.empty((splits, *out.shape), dtype=torch.float32, device=q.device)
        rows = torch.empty((2, splits, batch, sq, heads), dtype=torch.float32, device=q.device)
    lone = [0 if x.shape[0] == 1 else x.stride(0) for x in (q, k, v)]
    blocks = (
        _block(x, batch, heads, channels, block_n, config["tma"])
        for x, channels in ((k, size), (v, value_size))
    )
    early = launched_early(q.device)
    log2_e = attention_kernel.LOG2_E.value if kind == "" else 1.0
    attention_kernel.attend[(-(-sq // block_m) * heads * batch, splits)](
        *(q, k, v, *blocks, given, out, partial, rows),
        *(lone[0], q.stride(1), lone[1], k.stride(1), lone[2], v.stride(1), *strides),
        *(attributes["scale"] * log2_e, inverse_scale),
        BATCH=batch,
        HEADS=heads,
        SQ=sq,
        SK=sk,
        SIZE=size,
        VALUE_SIZE=value_size,
        WIDTH=width,
        VALUE_WIDTH=value_width,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        TAIL=_power(sk % block_n) if sk % block_n else 0,
        SPLITS=splits,
        MASK=kind,
        BLOCKS=bool(config["tma"]),
        SHARED_KEYS=k.shape[0] == 1,
        SHARED_VALUES=v.shape[0] == 1,
        STAGES=config["num_stages"],
        num_warps=config["num_warps"],
        **early,
    )
    if splits > 1:
        lines, at_once = batch * sq * heads, 8
        attention_kernel.combine[(-(-lines // at_once),)](
            *(partial, rows, out, lines, inverse_scale),
            VALUE_SIZE=value_size,
            VALUE_WIDTH=value_width,
            LINES=at_once,
            SPLITS=splits,
            MASK=kind,
            num_warps=4,
            **early,
        )
    return out


def _inputs(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    q, k, v, *rest = tensors
    assert q is not None and k is not None and v is not None
    return q, k, v, rest[0] if rest else None


def _power(value: int) -> int:
    """The next power of two, and at least what a matrix product in Triton needs."""
    return max(NARROWEST, int(triton.next_power_of_2(value)))


def _mask(mask: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, ...], str]:
    if mask is None:
        return None, (0, 0, 0, 0), ""
    strides = mask.expand(shape).stride()
    return (mask.view(torch.uint8), strides, "keep") if mask.dtype == torch.bool else (mask, strides, "add")


def _block(x: Tensor, batch: int, heads: int, size: int, rows: int, tma: int) -> Any:
    """A descriptor [B, S, heads, size] of packed channels, whose loads are zero outside of it; or the tensor itself."""
    if not tma:
        return x
    strides = [x.stride(0), x.stride(1), size, 1]
    return TensorDescriptor(x, [x.shape[0], x.shape[1], heads, size], strides, [1, rows, 1, _power(size)])


def _blocks_fit(tensors: Tensors, attributes: Attributes) -> bool:
    """Whether every address and stride of keys and values is a multiple of 16 bytes, as descriptors need.

    Heads narrower than the smallest product, which a descriptor would have to fill up, do not: on an H100 a pipelined
    kernel of Triton 3.6 then read outside its memory (8 channels, block_m = block_n = 64).
    """
    if min(attributes["head_size"], attributes["value_size"]) < NARROWEST:
        return False
    _, k, v, _ = _inputs(tensors)
    sizes = (
        *(
            k.storage_offset(),
            k.stride(0),
            k.stride(1),
            attributes.get("k_offset", 0),
            attributes["head_size"],
        ),
        *(
            v.storage_offset(),
            v.stride(0),
            v.stride(1),
            attributes.get("v_offset", 0),
            attributes["value_size"],
        ),
    )
    return all(size * k.dtype.itemsize % 16 == 0 for size in sizes)


def _shared(attributes: Attributes, block_n: int, stages: int, itemsize: int) -> int:
    width = _power(attributes["head_size"]) + _power(attributes["value_size"])
    return stages * block_n * width * itemsize


def _blocks(sq: int, sk: int, around: int, sms: int) -> list[tuple[int, int, int, int]]:
    """(block_m, block_n, warps, stages), best guess first."""
    few = [(16, 64, 4, 3), (16, 128, 4, 3), (16, 64, 2, 3), (16, 32, 1, 3)]
    if sq <= 16:
        return few
    many = [(64, 64, 4, 3), (64, 64, 4, 4), (64, 64, 4, 2), (64, 128, 4, 2), (64, 32, 4, 4)]
    if sq > 64:
        many += [(128, 64, 8, 3), (128, 128, 8, 2)]
    if 64 < sk <= 256:
        many.insert(1, (64, int(triton.next_power_of_2(sk)), 4, 1))
    programs = -(-sq // 64) * around
    if programs >= 2 * sms:
        return many
    small = [*few[:3], (32, 64, 4, 3)]
    return [*small, *many] if programs < sms else [*many[:3], *small, *many[3:]]


def _splits(programs: int, blocks: int, sms: int) -> list[int]:
    """Into how many parts to split the keys, where programs leave multiprocessors idle."""
    return [parts for parts in (2, 4, 8) if parts <= blocks // 2 and programs * parts <= 4 * sms]
