"""The fused steps of a plan, in plain torch: what each one computes, and the reference of every kernel for it.

A step is an ONNX node of the domain `vitesse.cuda` with static shapes; optional inputs are "" in the graph and None
here. Sums, epilogues and normalisations are in float32 and rounded once, as fused kernels do. The functions run on any
torch device: `meta` gives shapes, the CPU gives numbers for tests, a GPU the fallback.

Every function takes the node's tensors in order and its attributes by keyword, and returns a tuple of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

DOMAIN = "vitesse.cuda"
E4M3 = torch.float8_e4m3fn
LARGEST_E4M3 = 448.0

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


def quantised(x: Tensor, scale: float) -> Tensor:
    """E4M3 of x / scale, rounded to nearest even and saturated at ±448 (ONNX QuantizeLinear with saturate=1)."""
    return (x.float() / scale).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(E4M3)


def linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "",
    residual_first: int = 0,
    out_dtype: str = "float16",
    out_scale: float = 0.0,
) -> tuple[Tensor]:
    """y = act(x·W · scale + bias) + residual, or act(… + residual) with `residual_first`.

    Args:
        x: [..., K]; float16, bfloat16, float32 or E4M3.
        weight: [K, N], constant, of x's dtype.
        scale: float32 [1] or [N], constant: the product of the scales of an E4M3 x and weight.
        bias: [N], constant.
        residual: [..., N], or a suffix of that shape ([S, N]) shared by the batch.
        activation: a key of ACTIVATIONS.
        out_scale: above 0, y is divided by it and returned in E4M3; otherwise y has `out_dtype`.
    """
    y = x.float() @ weight.float()
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias.float()
    return (_finished(y, residual, activation, residual_first, out_dtype, out_scale),)


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    out_scale: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """LayerNorm over the last axis of x + residual: (normalised, x + residual, normalised in E4M3).

    The first two have x's dtype; the sum is rounded to it before it is normalised, so that both readers see the same.
    The third is there with `out_scale` above 0. In a graph an output that nobody reads has the name "" and is not
    written.

    Args:
        x: [..., C]; weight, bias: [C], constant; residual: as x, or a suffix of its shape.
    """
    total = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    shape = (x.shape[-1],)
    wide = F.layer_norm(total.float(), shape, weight.float(), None if bias is None else bias.float(), epsilon)
    return wide.to(x.dtype), total, quantised(wide, out_scale) if out_scale > 0 else None


def norm_linear(
    x: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    activation: str = "",
    residual_first: int = 0,
    out_dtype: str = "float16",
    out_scale: float = 0.0,
) -> tuple[Tensor]:
    """`norm` of x with `gain` and `shift`, read by one `linear` alone: (LayerNorm(x) · W + bias), and so on.

    Args:
        x: [..., K]; gain, shift: [K], constant; the others as in `linear`, without a scale.
    """
    rows, _, _ = norm(x, gain, shift, epsilon=epsilon)
    return linear(
        *(rows, weight, None, bias, residual),
        activation=activation,
        residual_first=residual_first,
        out_dtype=out_dtype,
        out_scale=out_scale,
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    heads: int,
    head_size: int,
    value_size: int,
    scale: float,
    q_offset: int = 0,
    k_offset: int = 0,
    v_offset: int = 0,
    out_dtype: str = "float16",
    out_scale: float = 0.0,
) -> tuple[Tensor]:
    """softmax(q·kᵀ·scale + mask)·v by heads → [B, Sq, heads · value_size].

    Args:
        q, k, v: [B, S, width]: heads × head_size consecutive channels from the offset on; one packed tensor may be
            given three times, and the batch of a constant may be 1.
        mask: additive float or bool (True = keep), broadcastable to [B, heads, Sq, Sk].
    """
    queries = _heads(q, q_offset, heads, head_size)
    keys = _heads(k, k_offset, heads, head_size)
    values = _heads(v, v_offset, heads, value_size)
    scores = queries @ keys.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    y = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    return (quantised(y, out_scale) if out_scale > 0 else y.to(_dtype(out_dtype)),)


def conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    activation: str = "",
    residual_first: int = 1,
    out_dtype: str = "float16",
    out_scale: float = 0.0,
) -> tuple[Tensor]:
    """Convolution with the epilogue of `linear`; NCHW as shapes say, channels_last in memory.

    Args:
        x: [B, C, H, W], where it is wider than the weight, as an image may be, it is rounded to the weight's dtype;
        weight: [O, C / group, KH, KW], constant; scale: float32 [1] or [O]; bias: [O]; residual: [B, O, H', W'].
        pads: top, left, bottom, right, as ONNX has them.
    """
    top, left, bottom, right = pads
    # Weights in E4M3 are numbers of another scale, and so is an x that they are for.
    image = x if weight.dtype == E4M3 else x.to(weight.dtype)
    padded = F.pad(image.float(), (left, right, top, bottom))
    y = F.conv2d(padded, weight.float(), None, tuple(strides), 0, tuple(dilations), group)
    if scale is not None:
        y = y * scale.view(1, -1, 1, 1)
    if bias is not None:
        y = y + bias.float().view(1, -1, 1, 1)
    made = _finished(y, residual, activation, residual_first, out_dtype, out_scale)
    return (made.contiguous(memory_format=torch.channels_last),)


def conv_pair(
    x: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    activation: str = "",
    out_dtype: str = "float16",
    out_scale: float = 0.0,
) -> tuple[Tensor]:
    """Two 1x1 convolutions added: the end of a residual block and its shortcut, as one product, rounded once.

    y = act(W₁·x + W₂·other at every stride-th pixel + bias); NCHW as shapes say, channels_last in memory.

    Args:
        x: [B, C, H, W]; other: [B, C₂, H₂, W₂] with ⌈H₂ / stride⌉ = H and ⌈W₂ / stride⌉ = W.
        weight: [O, C + C₂, 1, 1], constant: W₁ and W₂ side by side; bias: [O], constant.
        strides: of the second convolution, down and across.
    """
    down, across = strides
    both = torch.cat([x, other[:, :, ::down, ::across]], 1)
    return conv(both, weight, None, bias, activation=activation, out_dtype=out_dtype, out_scale=out_scale)


def conv_chain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    next_weight: Tensor,
    next_bias: Tensor | None = None,
    residual: Tensor | None = None,
    other: Tensor | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    activation: str = "",
    next_activation: str = "",
    out_dtype: str = "float16",
) -> tuple[Tensor, Tensor]:
    """The end of a residual block, y, and the 1x1 convolution that the next block begins with, h.

    y is that of `conv` with a residual, or that of `conv_pair` where `other` is given; h = act(next_weight·y +
    next_bias). Both have `out_dtype`, and h is made of the rounded y.

    Args:
        x: [B, C, H, W]; residual: [B, O, H, W]; other: as in `conv_pair`.
        weight: [O, C, 1, 1], or [O, C + C₂, 1, 1] with `other`; next_weight: [O₂, O, 1, 1]; both constant.
        bias: [O], next_bias: [O₂], constant.
        strides: of `other`, down and across.
    """
    if other is None:
        (y,) = conv(x, weight, None, bias, residual, activation=activation, out_dtype=out_dtype)
    else:
        (y,) = conv_pair(x, other, weight, bias, strides=strides, activation=activation, out_dtype=out_dtype)
    (h,) = conv(y, next_weight, None, next_bias, activation=next_activation, out_dtype=out_dtype)
    return y, h


def conv_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    activation: str = "",
    out_dtype: str = "float16",
    window: tuple[int, int],
    window_strides: tuple[int, int] = (1, 1),
    window_pads: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> tuple[Tensor]:
    """The first convolution of a backbone and the largest of every window of what it makes: [B, O, H', W'].

    Args:
        x: [B, C, H, W], an image; weight: [O, C, KH, KW], constant; bias: [O], constant; as in `conv`.
        window, window_strides, window_pads: of the pooling; what is padded is never the largest.
    """
    (y,) = conv(
        x, weight, None, bias,
        strides=strides, pads=pads, dilations=dilations, activation=activation, out_dtype=out_dtype,
    )  # fmt: skip
    top, left, bottom, right = window_pads
    padded = F.pad(y, (left, right, top, bottom), value=-torch.inf)
    made = F.max_pool2d(padded, tuple(window), tuple(window_strides))
    return (made.contiguous(memory_format=torch.channels_last),)


def patches(
    image: Tensor,
    weight: Tensor,
    tokens: Tensor,
    positions: Tensor,
    *,
    patch: int,
    out_dtype: str = "float16",
) -> tuple[Tensor]:
    """Patch embedding of a ViT with what stands before the patches and the positions: [B, P + N, D].

    y[:, :P] = tokens; y[:, P + n] = weight · patch n (rows first) + positions[n].

    Args:
        image: [B, C, H, W], H and W multiples of `patch`; float32 or 16 bits, rounded to the weight's dtype.
        weight: [D, C, patch, patch], constant; tokens: [P, D], P may be 0, their positions added already;
        positions: [N, D], the convolution's bias added already.
    """
    made = F.conv2d(image.to(weight.dtype).float(), weight.float(), stride=patch).flatten(2).transpose(1, 2)
    made = made + positions.float()
    prefix = tokens.float().expand(image.shape[0], *tokens.shape)
    return (torch.cat([prefix, made], 1).to(_dtype(out_dtype)),)


def quantise(x: Tensor, other: Tensor | None = None, *, out_scale: float) -> tuple[Tensor]:
    """E4M3 of (x + other) / out_scale, the sum rounded once: what no other step could do with its own output.

    Args:
        other: of x's shape, or of a suffix of it with ones before, shared by the batch.
    """
    total = x.float() if other is None else x.float() + other.float()
    return (quantised(total, out_scale),)


STEPS: Mapping[str, Callable[..., tuple[Tensor | None, ...]]] = {
    "Linear": linear,
    "Norm": norm,
    "NormLinear": norm_linear,
    "Attention": attention,
    "Conv": conv,
    "ConvPair": conv_pair,
    "ConvChain": conv_chain,
    "ConvPool": conv_pool,
    "Patches": patches,
    "Quantise": quantise,
}


def _finished(
    y: Tensor, residual: Tensor | None, activation: str, residual_first: int, out_dtype: str, out_scale: float
) -> Tensor:
    act = ACTIVATIONS[activation]
    if residual is not None and residual_first:
        y = act(y + residual.float())
    else:
        y = act(y) if residual is None else act(y) + residual.float()
    return quantised(y, out_scale) if out_scale > 0 else y.to(_dtype(out_dtype))


def _heads(x: Tensor, offset: int, heads: int, size: int) -> Tensor:
    batch, length, _ = x.shape
    part = x[..., offset : offset + heads * size].float()
    return part.reshape(batch, length, heads, size).transpose(1, 2)


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found
