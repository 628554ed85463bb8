"""The mean error that rounded weights make, taken out of the bias.

Rounding weights W to Ŵ shifts every output channel by (Ŵ - W) E[x], which calibration knows.
Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
arXiv 1906.04721, section 4.2; here E[x] is measured on calibration images, not derived from batch statistics.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ModelError


def corrected_bias(
    weight: NDArray[np.floating],
    rounded_weight: NDArray[np.floating],
    mean: NDArray[np.float64],
    *,
    op_type: str,
    group: int = 1,
    trans_b: bool = False,
) -> NDArray[np.float64]:
    """Return what to add to the bias of each output channel, (out,) float64: -(Ŵ - W) E[x].

    Args:
        weight: Conv (out, in / group, kernel…); MatMul and Gemm (in, out), or (out, in) with `trans_b`.
        rounded_weight: Ŵ, the integers times their scales; same shape.
        mean: E[x] per input channel, (in,), over images and positions: `ChannelStatistics.mean`.
        op_type: Conv, MatMul or Gemm. For a Gemm with alpha or beta other than 1, the result times alpha / beta.
        group: of a Conv.

    Padding is ignored: at the border of an image, where part of a kernel meets zeros, the correction is that of the
    inside.

    Raises:
        ModelError: the shapes do not fit each other.
    """
    error = np.asarray(rounded_weight, np.float64) - np.asarray(weight, np.float64)
    if op_type == "Conv":
        # Every position meets the same mean, so the kernel's positions add up.
        by_input = error.reshape(group, -1, *error.shape[1:]).sum(axis=tuple(range(3, error.ndim + 1)))
    else:
        by_input = (error if trans_b else error.T)[None]
    groups, _, inputs = by_input.shape
    if mean.shape != (groups * inputs,):
        raise ModelError(
            f"the mean of {mean.shape[0] if mean.ndim else 0} channels, weights of shape {weight.shape} for {op_type}",
            expected=f"{groups * inputs} channels",
            cause="statistics of another tensor, or `group` and `trans_b` not passed on",
        )
    shift: NDArray[np.float64] = np.einsum("goi,gi->go", by_input, mean.reshape(groups, inputs)).reshape(-1)
    return -shift
