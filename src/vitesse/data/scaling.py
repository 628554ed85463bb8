"""How large an image is to be in the input tensor when its aspect is kept, and which bucket takes it.

Sizes are (height, width) in pixels. A bucket is the size of a tensor: an image lies at its left top, the rest is
padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from vitesse.errors import SpecError
from vitesse.spec import Preprocessing, Resize

Size = tuple[int, int]


def fitted(size: Size, box: Size) -> Size:
    """Return `size` scaled, aspect kept, to the largest size inside `box`; no side gets below one pixel."""
    height, width = size
    ratio = min(box[0] / height, box[1] / width)
    return min(box[0], max(1, round(height * ratio))), min(box[1], max(1, round(width * ratio)))


def shortest(size: Size, rules: Preprocessing) -> Size:
    """Return the size of an image resized by its shortest side, as DETR's evaluation does (datasets/transforms.py)."""
    height, width = size
    short, long = min(size), max(size)
    wanted, limit = min(rules.size), max(rules.size)
    if long / short * wanted > limit:
        wanted = max(1, round(limit * short / long))
    if height <= width:
        return wanted, max(1, int(wanted * width / height))
    return max(1, int(wanted * height / width)), wanted


def wanted_size(size: Size, rules: Preprocessing) -> Size:
    """Return the size at which the rules want to see an image, its aspect kept, before it meets a bucket.

    SHORTEST and LETTERBOX say it themselves. STRETCH has two factors, for height and width: their geometric mean is
    taken, which gives the image as many pixels as rules.size has. NONE leaves the image as it is.

    Raises:
        SpecError: the rule cuts images to one size, so that there is nothing to choose.
    """
    if rules.resize is Resize.SHORTEST:
        return shortest(size, rules)
    if rules.resize is Resize.LETTERBOX:
        return fitted(size, rules.size)
    if rules.resize is Resize.NONE:
        return size
    if rules.resize is Resize.STRETCH:
        factor = sqrt(rules.size[0] / size[0] * rules.size[1] / size[1])
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    raise SpecError(
        f"resize = {rules.resize.value!r} cuts every image to {rules.size[0]}×{rules.size[1]}",
        expected="buckets with resize shortest, letterbox, stretch or none",
        cause="a model evaluated on centre crops, which are all of one size",
        fix='leave buckets out, or set resize = "letterbox" in the spec',
    )


def kept_scale(wanted: Size, bucket: Size) -> float:
    """Return by what an image of the wanted size is scaled to lie in the bucket: 1 where it fits, never above 1."""
    return min(1.0, bucket[0] / wanted[0], bucket[1] / wanted[1])


def bucket_of(wanted: Size, buckets: Sequence[Size]) -> int:
    """Return the index of the bucket that keeps most pixels of an image, and among those wastes least.

    Args:
        wanted: the image's size as `wanted_size` gives it.
        buckets: at least one; of two that are equally good the first is taken.
    """
    return min(
        range(len(buckets)),
        key=lambda index: (-kept_scale(wanted, buckets[index]), buckets[index][0] * buckets[index][1]),
    )


def sized_for(wanted: Size, bucket: Size) -> Size:
    """Return the size that the image gets inside the bucket: the wanted one, or the largest that fits."""
    return wanted if kept_scale(wanted, bucket) == 1.0 else fitted(wanted, bucket)
