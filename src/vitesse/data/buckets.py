"""Buckets: a few tensor sizes that take images of every size, chosen so that least of the tensors is padding.

An engine for a GPU is fastest at shapes it knows: one CUDA graph and one optimisation profile each. A batch, too, has
one shape. So images are scaled as the model wants them, each is laid into the bucket that wastes least, and the rest of
the tensor is zero. docs/resolution.md shows how much that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitesse.data.bucket_search import choose
from vitesse.data.scaling import Size, bucket_of, kept_scale, sized_for, wanted_size
from vitesse.errors import DataError, UsageError
from vitesse.spec import ModelSpec, Preprocessing

__all__ = ["Fit", "bucket_of", "choose_buckets", "fit", "waste", "with_buckets"]

# Different heights, and widths, that the search tells apart: with more it would look at too many buckets. 24 levels a
# side make at most 576 buckets and as many kinds of images.
_LEVELS = 24


@dataclass(frozen=True)
class Fit:
    """How images lie in buckets.

    padding: share of all pixels of the tensors, one image each, that no image covers, 0..1.
    images: how many lie in each bucket, in the buckets' order.
    shrunk: how many had to be scaled down because no bucket holds them at the scale the rule wants.
    scale: the smallest factor, per side, by which any of them was; 1 where none was.
    """

    padding: float
    images: tuple[int, ...]
    shrunk: int
    scale: float


def choose_buckets(
    sizes: Sequence[Size], rules: Preprocessing, count: int, *, multiple: int = 32
) -> tuple[Size, ...]:
    """Return the `count` buckets (fewer where fewer do as well) that these images fill best, smallest first.

    Every image fits at the scale the rule wants: none of these is scaled down. (An image that is not among them may be;
    `fit` says how much.) Of all such sets the one with the least padded area is taken, each image counted once: found
    and proven by search. Two bounds keep the time to a few seconds for images of any sizes. With more than 24
    different heights or widths, after scaling and rounding up to the multiple, 24 of each are picked, evenly over the
    images, and buckets are chosen among those. And a search that does not end (seen with six buckets for 5,000
    images of random size that keep it; not seen where a resize rule scales them) gives the best that it found.

    Args:
        sizes: (height, width) of the images in pixels.
        rules: how the model wants them scaled; its own `buckets` count for nothing.
        count: 1 or more.
        multiple: both sides of a bucket are multiples of it: the stride of the backbone, or the patch.

    Raises:
        DataError: no images. UsageError: count or multiple below 1. SpecError: rules that crop.
    """
    if not sizes:
        raise DataError("no images to choose buckets for", expected="the sizes of at least one")
    if count < 1 or multiple < 1:
        raise UsageError(
            f"{count} buckets with sides in multiples of {multiple}", expected="1 or more of both"
        )
    cells = Counter(tuple(-(-side // multiple) for side in wanted_size(size, rules)) for size in sizes)
    demands = np.array(sorted(cells), np.int64)
    weights = np.array([cells[height, width] for height, width in demands.tolist()], np.int64)
    levels = np.stack([_levels(demands[:, side], weights) for side in (0, 1)], axis=1)
    chosen = _search(levels, weights, count)
    found = _tightened(demands, chosen)
    return tuple((height * multiple, width * multiple) for height, width in found)


def fit(sizes: Sequence[Size], rules: Preprocessing, buckets: Sequence[Size]) -> Fit:
    """Return how images of these (height, width) lie in `buckets` under the rules.

    Raises:
        DataError: no images. SpecError: rules that crop, or no bucket.
    """
    if not sizes or not buckets:
        raise DataError(f"{len(sizes)} images and {len(buckets)} buckets", expected="at least one of both")
    images, shown, taken, scales = [0] * len(buckets), 0, 0, []
    for size in sizes:
        wanted = wanted_size(size, rules)
        index = bucket_of(wanted, buckets)
        bucket = buckets[index]
        height, width = sized_for(wanted, bucket)
        images[index] += 1
        shown, taken = shown + height * width, taken + bucket[0] * bucket[1]
        scales.append(kept_scale(wanted, bucket))
    return Fit(1 - shown / taken, tuple(images), sum(scale < 1 for scale in scales), min(scales))


def waste(sizes: Sequence[Size], rules: Preprocessing, buckets: Sequence[Size]) -> float:
    """Return the share of padded pixels, 0..1, with one image a tensor; raises as `fit`."""
    return fit(sizes, rules, buckets).padding


def with_buckets(spec: ModelSpec, buckets: Sequence[Size]) -> ModelSpec:
    """Return the spec with these buckets, or with none; raises SpecError where the spec crops."""
    return replace(spec, preprocessing=replace(spec.preprocessing, buckets=tuple(buckets)))


def _levels(sides: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round each side up to one of at most _LEVELS of them, the largest among these, evenly over the images."""
    values, place = np.unique(sides, return_inverse=True)
    if len(values) <= _LEVELS:
        return sides
    share = np.cumsum(np.bincount(place, weights)) / weights.sum()
    # the last value of each of the _LEVELS equal parts of the images
    ends = np.searchsorted(share, np.arange(1, _LEVELS + 1) / _LEVELS - 1e-9)
    kept = values[np.unique(ends)]
    rounded: NDArray[np.int64] = kept[np.searchsorted(kept, sides)]
    return rounded


def _search(sizes: NDArray[np.int64], weights: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the best buckets (n, 2) for images of `sizes` (images, 2), in cells.

    A bucket of the best set is as high as one of its images and as wide as one of them; no others are looked at.
    """
    kinds, place = np.unique(sizes, axis=0, return_inverse=True)
    images = np.bincount(place.reshape(-1), weights)
    heights, widths = np.unique(kinds[:, 0]), np.unique(kinds[:, 1])
    buckets = np.array([(height, width) for height in heights for width in widths], np.int64)
    holds: NDArray[np.bool_] = np.all(kinds[:, None] <= buckets[None], axis=2)
    reached = [(holds & (kinds[:, None, side] == buckets[None, :, side])).any(axis=0) for side in (0, 1)]
    tight = reached[0] & reached[1]
    buckets, holds = buckets[tight], holds[:, tight]
    area = buckets[:, 0] * buckets[:, 1]
    cost = np.where(holds, images[:, None] * area[None], np.inf)
    found: NDArray[np.int64] = buckets[list(choose(cost, count).open)]
    return found


def _tightened(demands: NDArray[np.int64], chosen: NDArray[np.int64]) -> list[Size]:
    """Give each image to its smallest bucket and shrink the buckets to what lies in them; smallest first."""
    holds = (demands[:, None] <= chosen[None]).all(axis=2)
    best = np.where(holds, chosen.prod(axis=1)[None], np.inf).argmin(axis=1)
    tight = {tuple(demands[best == index].max(axis=0).tolist()) for index in np.unique(best).tolist()}
    return sorted(tight, key=lambda size: (size[0] * size[1], size))
