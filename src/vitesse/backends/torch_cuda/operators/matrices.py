"""Matrix products: MatMul, Gemm, Einsum and Attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.operators.operator import Made, Unsupported, operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of the last two axes, with numpy's broadcasting of the others."""
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Return alpha · A·B + beta · C of matrices [M, K] and [K, N], each transposed on request."""
    left, right = a.t() if transA else a, b.t() if transB else b
    if c is not None:
        return torch.addmm(c, left, right, beta=beta, alpha=alpha)
    product = left @ right
    return product if alpha == 1.0 else product * alpha


@operator("Einsum", since=12)
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    """Sum of products as the equation says."""
    return torch.einsum(equation.replace(" ", ""), list(tensors))


@operator("Attention", since=23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    is_causal: int = 0,
    softcap: float = 0.0,
    softmax_precision: int = 0,
    qk_matmul_output_mode: int = 0,
) -> Made:
    """softmax(q·kᵀ·scale + mask)·v on [B, S, heads · size] or [B, heads, S, size].

    Key heads may be fewer than query heads by a whole factor. torch's kernels keep the softmax in float32, so that
    `softmax_precision` changes nothing.

    Args:
        mask: additive or bool (True = keep), broadcastable to [B, heads, Sq, Sk].
    """
    if past_key is not None or past_value is not None:
        raise Unsupported("past keys and values", "attention over the keys of the same call")
    if softcap:
        raise Unsupported(f"softcap={softcap}", "softcap=0")
    packed = q.ndim == 3
    if packed:
        q, k, v = (_by_heads(x, n) for x, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads)))
    if is_causal and mask is not None:
        kept = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask = mask & kept if mask.dtype == torch.bool else mask.masked_fill(~kept, -torch.inf)
        is_causal = 0
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=bool(is_causal), scale=scale, enable_gqa=grouped
    )
    return y.transpose(1, 2).flatten(2) if packed else y


def _by_heads(x: Tensor, heads: int) -> Tensor:
    if not heads:
        raise Unsupported(
            "no attribute q_num_heads or kv_num_heads with three axes", "both number of heads given"
        )
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(1, 2)
