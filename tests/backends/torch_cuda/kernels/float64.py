"""What attention, LayerNorm and patch embedding are, in float64 and NumPy, apart from the engine's definitions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import DeviceFacts

Array = npt.NDArray[np.float64]
H100 = DeviceFacts((9, 0), 132, "NVIDIA H100")
AMPERE = DeviceFacts((8, 0), 108, "NVIDIA A100")
TURING = DeviceFacts((7, 5), 40, "NVIDIA T4")


def facts() -> DeviceFacts:
    """Return the GPU that is here, or the H100's where the interpreter stands for it."""
    if not torch.cuda.is_available():
        return H100
    properties = torch.cuda.get_device_properties(0)
    return DeviceFacts(
        (properties.major, properties.minor), properties.multi_processor_count, properties.name
    )


def numbers(x: Tensor) -> Array:
    return np.asarray(x.detach().cpu().double().numpy())


def attention(
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    size: int,
    value_size: int,
    scale: float,
    mask: Array | None = None,
) -> Array:
    """Head by head and image by image; q, k, v begin at their first head, the mask is additive."""
    images = max(len(q), len(k))
    out = np.empty((images, q.shape[1], heads * value_size))
    for image in range(images):
        for head in range(heads):
            own, values = (slice(head * s, (head + 1) * s) for s in (size, value_size))
            scores = q[image % len(q), :, own] @ k[image % len(k), :, own].T * scale
            if mask is not None:
                scores = scores + np.broadcast_to(mask, (images, heads, *scores.shape))[image, head]
            with np.errstate(invalid="ignore"):
                shares = np.exp(scores - scores.max(1, keepdims=True))
            out[image, :, values] = shares / shares.sum(1, keepdims=True) @ v[image % len(v), :, values]
    return out


def norm(x: Array, weight: Array, bias: Array | None, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    made = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight
    return made if bias is None else made + bias


def patches(image: Array, weight: Array, tokens: Array, positions: Array) -> Array:
    """Patch by patch, as the definition reads."""
    size, patch = weight.shape[0], weight.shape[-1]
    across = image.shape[3] // patch
    out = np.empty((len(image), len(tokens) + len(positions), size))
    out[:, : len(tokens)] = tokens
    for number in range(len(positions)):
        top, left = number // across * patch, number % across * patch
        pixels = image[:, :, top : top + patch, left : left + patch].reshape(len(image), -1)
        out[:, len(tokens) + number] = pixels @ weight.reshape(size, -1).T + positions[number]
    return out


def error(found: Tensor, expected: Array) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where a number is missing."""
    assert tuple(found.shape) == expected.shape
    return float(np.linalg.norm(numbers(found) - expected) / np.linalg.norm(expected))


def e4m3_steps(found: Tensor, expected: Array, scale: float, least: float = 2.0**-6) -> Array:
    """By how many steps of the E4M3 grid each number is off; below `least`, by steps of the grid at `least`.

    Triton's interpreter loses the carry of a mantissa that rounds up to the next power of two, and rounds numbers below
    the smallest normal one (2⁻⁶) down: without a GPU those, and where they may come by another rounding, are left out.
    """
    rounded = torch.from_numpy((expected / scale).clip(-448, 448)).to(torch.float8_e4m3fn).double().numpy()
    step = 2.0 ** (np.floor(np.log2(np.maximum(abs(rounded), least))) - 3)
    off = abs(numbers(found) - rounded) / step
    if found.device.type == "cpu":
        mantissa, _ = np.frexp(abs(rounded))
        off = off[(mantissa != 0.5) & (mantissa != 0.9375) & (abs(rounded) >= 2.0**-6)]
    return np.asarray(off)
