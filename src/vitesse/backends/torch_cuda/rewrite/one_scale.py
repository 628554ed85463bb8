"""E4M3 weights whose channels have scales a power of two apart → one scale for all of them.

    q[k, n] · 2^e[n]  =  (q[k, n] · 2^(e[n] − e)) · 2^e,  e the largest

A floating point number keeps its digits when a power of two moves into it; only the least are below what E4M3 can hold,
and lose some. Libraries have more and faster products with one scale than with one for each channel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.torch_cuda.rewrite.layer import Array, wide
from vitesse.backends.torch_cuda.rewrite.nodes import constant, given, initializer, is_step
from vitesse.precision.fp8 import to_e4m3

_WEIGHT, _SCALE = 1, 2
# ‖w − w₀‖ / ‖w₀‖ of a channel that the least numbers may make: rounding to E4M3 itself makes about 0.025.
_LOST = 1e-3


def one_scale(model: ir.Model) -> int:
    """Give `Linear` steps on E4M3 numbers one scale where that changes next to nothing, in place; returns how many."""
    made = 0
    for node in [node for node in model.graph if is_step(node, "Linear")]:
        weight, scale = (constant(given(node, place)) for place in (_WEIGHT, _SCALE))
        if weight is None or scale is None or scale.size < 2:
            continue
        found = _shared(weight, scale)
        if found is None:
            continue
        name = node.outputs[0].name
        for place, what, array in ((_WEIGHT, "weight", found[0]), (_SCALE, "scale", found[1])):
            node.replace_input_with(place, initializer(model, f"{name}_one_{what}", array))
        made += 1
    return made


def _shared(weight: Array, scale: Array) -> tuple[Array, Array] | None:
    """Weights [K, N] and a scale [1] for those with scales [N]; None where they are not the same."""
    numbers, scales = wide(weight), wide(scale)
    used = numbers.any(axis=0)
    if not used.any() or not (scales > 0).all():
        return None
    most = scales[used].max()
    ratio: NDArray[np.float64] = np.where(used, scales / most, 1.0)
    if (np.frexp(ratio)[0] != 0.5).any():
        return None
    wanted = numbers * ratio
    moved = to_e4m3(wanted)
    lost = np.linalg.norm(wide(moved) - wanted, axis=0)
    if (lost > _LOST * np.linalg.norm(wanted, axis=0)).any():
        return None
    return moved, np.array([most], np.float32)
