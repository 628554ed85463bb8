"""Outputs that no working model gives: NaN, Inf, nothing but zeros, the same answer to every image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitesse.backends.protocol import Tensors

# An output that moves by less than this part of its largest value does not depend on the image: float32
# rounding alone is about 1e-7.
_STILL = 1e-6


@dataclass(frozen=True)
class Finding:
    """Something wrong with an output, in plain words.

    kind: nan, inf, zeros, constant, or (from `verify.parity`) shape, missing, unreadable.
    images: how many images it concerns; first_image: the name of the first one.
    fatal: False for what some working models do on some images; everything else breaks the model.
    """

    kind: str
    output: str
    text: str
    images: int
    first_image: str
    fatal: bool = True


@dataclass
class _Seen:
    images: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    first_nan: str = ""
    first_inf: str = ""
    first_zeros: str = ""
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    comparable: bool = True


class HealthMeter:
    """Watches outputs image by image; memory is two arrays the size of one image's outputs."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Seen] = {}

    def add(self, outputs: Tensors, *, image: str = "") -> None:
        """Take in the outputs of one call. `image` names it in the findings (default: its number)."""
        for name, array in outputs.items():
            seen = self._outputs.setdefault(name, _Seen())
            seen.images += 1
            if array.dtype.kind == "f":
                _watch(seen, np.asarray(array, np.float64), image or f"image {seen.images}")

    def findings(self) -> tuple[Finding, ...]:
        """Return what is wrong so far, worst first; empty when nothing is."""
        found = [finding for name, seen in self._outputs.items() for finding in _judge(name, seen)]
        return tuple(sorted(found, key=lambda finding: not finding.fatal))


def _watch(seen: _Seen, array: NDArray[np.float64], image: str) -> None:
    if np.isnan(array).any():
        seen.nan += 1
        seen.first_nan = seen.first_nan or image
    if np.isinf(array).any():
        seen.inf += 1
        seen.first_inf = seen.first_inf or image
    if array.size and not array.any():
        seen.zeros += 1
        seen.first_zeros = seen.first_zeros or image
    if seen.low is None or seen.high is None:
        seen.low, seen.high = array.copy(), array.copy()
    elif seen.low.shape == array.shape:
        np.minimum(seen.low, array, out=seen.low)
        np.maximum(seen.high, array, out=seen.high)
    else:
        seen.comparable = False


def _judge(name: str, seen: _Seen) -> list[Finding]:
    found = []
    for kind, word, count, first in (
        ("nan", "NaN", seen.nan, seen.first_nan),
        ("inf", "infinite values", seen.inf, seen.first_inf),
    ):
        if count:
            text = f"the output `{name}` holds {word} in {_of(count, seen.images)} (first: {first})"
            found.append(Finding(kind, name, text, count, first))
    if seen.zeros:
        everywhere = seen.zeros == seen.images
        text = (
            f"the output `{name}` is all zeros in {_of(seen.zeros, seen.images)} (first: {seen.first_zeros})"
        )
        found.append(Finding("zeros", name, text, seen.zeros, seen.first_zeros, fatal=everywhere))
    elif not found and seen.images > 1 and _is_still(seen):
        text = f"the output `{name}` is the same for all {seen.images} images"
        found.append(Finding("constant", name, text, seen.images, "image 1"))
    return found


def _is_still(seen: _Seen) -> bool:
    if not seen.comparable or seen.low is None or seen.high is None or not seen.low.size:
        return False
    peak = max(abs(float(seen.low.min())), abs(float(seen.high.max())))
    return float((seen.high - seen.low).max()) <= _STILL * peak


def _of(count: int, images: int) -> str:
    if images == 1:
        return "the only image"
    return f"all {images} images" if count == images else f"{count} of {images} images"
