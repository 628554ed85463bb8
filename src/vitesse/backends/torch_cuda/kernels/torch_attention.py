"""`torch.attention`: torch's scaled_dot_product_attention by its library kernels, on views of packed tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.steps import quantised

BACKENDS: Mapping[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)


class TorchAttention:
    """One call of torch; the configuration is the name of the backend that torch is held to.

    The heads are strided views, and what flash and cuDNN write is [B, Sq, H, D] in memory already, so that neither side
    is copied. An E4M3 output is rounded by kernels after it. cuDNN builds its plan at the first call of a shape: call
    once before capturing.
    """

    name = "torch.attention"
    step = "Attention"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why no backend can: types that differ or are not floating point."""
        q, k, v, _ = _inputs(tensors)
        if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
            return f"types {q.dtype}, {k.dtype}, {v.dtype}: needs one of float16, bfloat16, float32 for all"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the backends that take these types, sizes and mask; "math", which takes all, where no other does."""
        q, _, _, mask = _inputs(tensors)
        sizes = attributes["head_size"], attributes["value_size"]
        able = [
            name
            for name in BACKENDS
            if name != "math" and not _cannot(name, q.dtype, mask is not None, sizes, device)
        ]
        return [Tactic(self.name, {"backend": name}) for name in able or ["math"]]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Return the call; nothing is prepacked."""
        backend = BACKENDS[tactic.config["backend"]]
        heads, size, value_size = attributes["heads"], attributes["head_size"], attributes["value_size"]
        q_offset, k_offset, v_offset = (attributes.get(f"{name}_offset", 0) for name in "qkv")
        scale, out_scale = attributes["scale"], attributes.get("out_scale", 0.0)
        dtype = getattr(torch, attributes.get("out_dtype", "float16"))

        def run(*inputs: Tensor | None) -> tuple[Tensor]:
            q, k, v, mask = _inputs(inputs)
            batch = max(q.shape[0], k.shape[0])
            views = (
                _heads(q, q_offset, heads, size, batch),
                _heads(k, k_offset, heads, size, batch),
                _heads(v, v_offset, heads, value_size, batch),
            )
            if mask is not None and mask.dtype not in (torch.bool, q.dtype):
                mask = mask.to(q.dtype)
            with sdpa_kernel(backend):
                y = scaled_dot_product_attention(*views, attn_mask=mask, scale=scale)
            y = y.transpose(1, 2).flatten(2)
            return (quantised(y, out_scale) if out_scale > 0 else y.to(dtype),)

        return run


KERNEL = TorchAttention()


def _cannot(name: str, dtype: torch.dtype, masked: bool, sizes: tuple[int, int], device: DeviceFacts) -> bool:
    """Whether a backend lacks the type, the mask, the sizes of the heads, or the GPU."""
    size, value_size = sizes
    if name == "efficient":
        return device.capability < (5, 0)
    # Both are for 16 bits on 8.0 and later, and for keys and values of one size.
    halves = dtype in HALVES and device.capability >= (8, 0) and size == value_size and size % 8 == 0
    if name == "flash":
        return not halves or masked or size > 256
    return not halves or size > 128


def _heads(x: Tensor, offset: int, heads: int, size: int, batch: int) -> Tensor:
    """The view [B, heads, S, size] of packed channels."""
    part = x[..., offset : offset + heads * size]
    return part.view(*part.shape[:2], heads, size).transpose(1, 2).expand(batch, -1, -1, -1)


def _inputs(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    q, k, v, *rest = tensors
    assert q is not None and k is not None and v is not None
    return q, k, v, rest[0] if rest else None
