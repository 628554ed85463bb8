"""Softmax and normalisations; in float32 inside where the tensor has 16 bits, and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.operators.operator import Made, Unsupported, operator


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Exponentials along an axis, divided by their sum."""
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax."""
    return torch.log_softmax(x, axis)


@operator("LayerNormalization", since=17)
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> Made:
    """Normalise over the axes from `axis` on; also mean and inverse deviation in float32 where the node lists them."""
    shape = x.shape[axis % x.ndim :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        wide = F.layer_norm(x.float(), shape, eps=epsilon) * scale.float()
        y = (wide if bias is None else wide + bias.float()).to(x.dtype)
    if outputs == 1:
        return y
    axes = tuple(range(axis % x.ndim, x.ndim))
    variance, mean = torch.var_mean(x.float(), axes, correction=0, keepdim=True)
    return y, mean, torch.rsqrt(variance + epsilon)


@operator("RMSNormalization", since=23)
def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Divide by the root of the mean square over the axes from `axis` on."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return wide.to(x.dtype) * scale


@operator("BatchNormalization", since=9)
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """Normalise each channel (axis 1) by stored statistics."""
    if training_mode:
        raise Unsupported("training_mode=1", "training_mode=0")
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


@operator("InstanceNormalization")
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalise each channel of each image over its positions."""
    return _over_groups(x, x.shape[1], epsilon, _by_channel(scale, x), _by_channel(bias, x))


@operator("GroupNormalization", since=18)
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    opset: int,
) -> Tensor:
    """Normalise groups of channels; scale and bias by channel, before opset 21 by group."""
    if opset < 21:
        each = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return _over_groups(x, num_groups, epsilon, _by_channel(scale, x), _by_channel(bias, x))


@operator("LpNormalization")
def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the sum of absolute values (p = 1) or the root of the sum of squares (p = 2) along an axis."""
    length: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / length


def _over_groups(x: Tensor, groups: int, epsilon: float, scale: Tensor, bias: Tensor) -> Tensor:
    wide = x.float().reshape(x.shape[0], groups, -1)
    normalised = F.layer_norm(wide, wide.shape[-1:], eps=epsilon).reshape(x.shape)
    return (normalised * scale.float() + bias.float()).to(x.dtype)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    shape: Sequence[int] = [-1] + [1] * (x.ndim - 2)
    return values.reshape(shape)
