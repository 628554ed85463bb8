"""What flows through both graphs on a few images, tensor by tensor: ranges, distances, and what stands still."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import onnx

from vitesse.backends.protocol import Array, Tensors
from vitesse.verify.diverge import Difference, difference_of, span_of
from vitesse.verify.pairs import makers_of, paired, tensors_of

FP16_LARGEST = 65504.0

Span = tuple[float, float]


@dataclass(frozen=True)
class Seen:
    """One float tensor over all traced images.

    span: smallest and largest value in the candidate; original: in the original, None where it has no such tensor.
    difference: the largest over the images; None without an original.
    nan, infinite: how many values of the candidate are, of those that are finite in the original.
    still: the candidate's values are the same for every image (None: only one image), and not so in the original.
    zeros: every value is zero, and not so in the original.
    """

    tensor: str
    span: Span
    original: Span | None = None
    difference: Difference | None = None
    nan: int = 0
    infinite: int = 0
    still: bool | None = None
    zeros: bool = False

    @property
    def peak(self) -> float:
        """The largest magnitude in the original, or in the candidate where there is none."""
        low, high = self.original or self.span
        return max(abs(low), abs(high))


@dataclass
class _Digests:
    """Whether every image gave the same bytes; an image has one digest."""

    seen: dict[str, set[bytes]] = field(default_factory=dict)

    def add(self, name: str, value: Array) -> None:
        # −0 and 0 are the same number in other bytes.
        same = np.where(value == 0, 0, value).tobytes()
        self.seen.setdefault(name, set()).add(blake2b(same, digest_size=16).digest())

    def still(self, name: str) -> bool:
        return len(self.seen[name]) == 1


def trace(
    original: onnx.ModelProto | None,
    candidate: onnx.ModelProto,
    feeds: Sequence[tuple[Tensors, Tensors]],
) -> Mapping[str, Seen]:
    """Return what was seen of every float tensor of the candidate, by name.

    Args:
        feeds: for each image, the original's and the candidate's.

    Raises:
        BackendError: ONNX Runtime cannot run one of the graphs.
    """
    here, there = _Digests(), _Digests()
    found: dict[str, Seen] = {}
    shared = makers_of(original).keys() if original is not None else ()
    for reference, given in feeds:
        for name, value in tensors_of(candidate, given, without=shared):
            if value.dtype.kind == "f":
                here.add(name, value)
                found[name] = _joined(found.get(name), _alone(name, value))
        if original is None:
            continue
        for name, expected, value in paired(original, candidate, reference, given):
            if expected.dtype.kind == value.dtype.kind == "f":
                here.add(name, value)
                there.add(name, expected)
                found[name] = _joined(found.get(name), _beside(name, expected, value))
    return {name: _judged(seen, here, there, len(feeds)) for name, seen in found.items()}


def _alone(name: str, value: Array) -> Seen:
    nan, infinite = int(np.isnan(value).sum()), int(np.isinf(value).sum())
    return Seen(name, span_of(value), nan=nan, infinite=infinite, zeros=not value.any())


def _beside(name: str, expected: Array, value: Array) -> Seen:
    if expected.shape == value.shape:
        # A mask of −1e9 is −inf in FP16, and means the same.
        masked = np.isneginf(np.asarray(value, np.float64)) & (
            np.asarray(expected, np.float64) < -FP16_LARGEST
        )
        value = np.where(masked, expected, value)
        lost = np.isfinite(expected) & ~np.isfinite(value)
        nan, infinite = int(np.isnan(value[lost]).sum()), int(np.isinf(value[lost]).sum())
    else:
        nan = infinite = 0
    return Seen(
        name,
        span_of(value),
        span_of(expected),
        difference_of(expected, value),
        nan,
        infinite,
        zeros=not value.any() and bool(expected.any()),
    )


def _joined(before: Seen | None, now: Seen) -> Seen:
    if before is None:
        return now
    worst = before.difference
    if worst is not None and now.difference is not None and now.difference.rms > worst.rms:
        worst = now.difference
    return replace(
        before,
        span=_wider(before.span, now.span),
        original=None
        if before.original is None or now.original is None
        else _wider(before.original, now.original),
        difference=worst,
        nan=before.nan + now.nan,
        infinite=before.infinite + now.infinite,
        zeros=before.zeros and now.zeros,
    )


def _judged(seen: Seen, here: _Digests, there: _Digests, images: int) -> Seen:
    if images < 2:
        return seen
    still = here.still(seen.tensor)
    return replace(seen, still=still and not (seen.original is not None and there.still(seen.tensor)))


def _wider(one: Span, other: Span) -> Span:
    values = [value for value in (*one, *other) if not math.isnan(value)]
    return (min(values), max(values)) if values else (math.nan, math.nan)
