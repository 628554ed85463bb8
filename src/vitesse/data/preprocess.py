"""RGB pixels → the tensor a model takes, exactly as its spec says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.data.boxes import Placement
from vitesse.data.images import MAX_PIXELS, Rgb, size_of
from vitesse.data.scaling import Size, bucket_of, fitted, shortest, sized_for, wanted_size
from vitesse.errors import DataError, SpecError
from vitesse.spec import ModelSpec, Preprocessing, Resize


def prepare(image: Rgb, spec: ModelSpec, name: str = "") -> NDArray[np.float32]:
    """Return one image as the model takes it: float32 (3, H, W) or (H, W, 3) by the spec's layout, unbatched.

    Each value is ((pixel / (1 / scale)) - mean) / std of its channel, rounded to float32 after each step.

    Args:
        image: uint8 (height, width, 3) RGB, as `decode_image` returns it, or an image of Pillow in mode RGB, upright.
        spec: says size, resize rule, normalisation, layout and channel order.
        name: what the errors call the image, best its path.

    Raises:
        DataError: the spec forbids resizing and the size is wrong, or the shape is too extreme to be cropped.
        SpecError: the spec's filter, layout, colour order or std is not one that exists.
    """
    rules = spec.preprocessing
    placed = place(size_of(image), rules, name)
    tensor = np.empty(_shape(rules, tensor_size([placed], rules)), np.float32)
    _fill(tensor, image, rules, placed)
    return tensor


def feeds(
    images: Sequence[Rgb], spec: ModelSpec, names: Sequence[str] = ()
) -> dict[str, NDArray[np.generic]]:
    """Return a batch of model inputs: images float32 (N, …) and, where the spec has them, sizes int64 (N, 2).

    The sizes of `size_input` are those of the original images; where the spec letterboxes or crops they are the
    tensor's own size, because a graph can only scale boxes by them, and `decode` maps those boxes back. Those of
    `valid_size_input` are (height, width) of what each image covers of the tensor.

    Raises:
        DataError, SpecError: as `prepare`; images of several buckets; without buckets, images of unlike sizes for a
            model that does not mask padding.
    """
    rules = spec.preprocessing
    names = names or [f"image {index} of the batch" for index in range(len(images))]
    placements = [place(size_of(image), rules, name) for image, name in zip(images, names, strict=True)]
    size = tensor_size(placements, rules, names)
    batch = np.empty((len(images), *_shape(rules, size)), np.float32)
    for tensor, image, placed in zip(batch, images, placements, strict=True):
        _fill(tensor, image, rules, placed)
    inputs: dict[str, NDArray[np.generic]] = {spec.image_input: batch}
    if spec.valid_size_input is not None:
        covered = [placed.covers(size) for placed in placements]
        inputs[spec.valid_size_input] = np.array(covered, np.int64).reshape(-1, 2)
    elif (
        rules.resize is Resize.SHORTEST
        and not rules.buckets
        and any(placed.resized != size for placed in placements)
    ):
        sizes = [placed.resized for placed in placements]
        raise DataError(
            f"images of {sizes[0]} and other (height, width) in one batch",
            expected="images of one size: the model has no padding mask, and would take padding for image",
            fix="run them one by one, or export the model with --dynamic batch,height,width where it has a mask",
        )
    if spec.size_input is not None:
        scaled = boxes_in_input_pixels(spec)
        sizes = [size if scaled else size_of(image) for image in images]
        pairs = np.array(sizes, np.int64).reshape(-1, 2)
        inputs[spec.size_input] = pairs[:, ::-1].copy() if spec.size_order == "wh" else pairs
    return inputs


def tensor_size(placements: Sequence[Placement], rules: Preprocessing, names: Sequence[str] = ()) -> Size:
    """Return (height, width) of the tensor that takes these images.

    It is the spec's size; the largest image's (SHORTEST); or, with buckets, that of the bucket of all of them.

    Raises:
        DataError: with buckets, images of several of them; `names` says what to call the images.
    """
    if rules.buckets and placements:
        sizes = [_bucket(placed.original, rules) for placed in placements]
        other = next((index for index, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            raise _mixed_buckets([(0, sizes[0]), (other, sizes[other])], names)
        return sizes[0]
    if rules.resize is not Resize.SHORTEST or not placements:
        return rules.size
    heights, widths = zip(*(placed.resized for placed in placements), strict=True)
    return max(heights), max(widths)


def group_by_bucket(images: Sequence[Rgb], spec: ModelSpec) -> dict[Size, list[int]]:
    """Return which images may go into one batch: (height, width) of the tensor → their indices, in order of arrival.

    Without buckets in the spec the tensor is the one that each image would have alone.

    Raises:
        DataError, SpecError: as `place`.
    """
    groups: dict[Size, list[int]] = {}
    for index, image in enumerate(images):
        placed = place(size_of(image), spec.preprocessing, f"image {index}")
        groups.setdefault(tensor_size([placed], spec.preprocessing), []).append(index)
    return groups


def _bucket(size: Size, rules: Preprocessing) -> Size:
    return rules.buckets[bucket_of(wanted_size(size, rules), rules.buckets)]


def boxes_in_input_pixels(spec: ModelSpec) -> bool:
    """Say whether a graph with its post-processor inside answers in pixels of its input tensor.

    It does when nobody tells it the original size, and when padding or cropping makes that size useless.
    """
    padded = {Resize.LETTERBOX, Resize.CROP, Resize.SQUASH, Resize.SHORTEST}
    rules = spec.preprocessing
    return spec.size_input is None or bool(rules.buckets) or rules.resize in padded


def place(size: tuple[int, int], rules: Preprocessing, name: str = "") -> Placement:
    """Return where an image of `size` (height, width) comes to lie in the input tensor.

    CROP scales until the image covers size / crop_ratio, rounded down as timm and torchvision do, and takes the
    centre; SQUASH does so without keeping the aspect; LETTERBOX scales until it fits and leaves the rest at the
    right and below empty; SHORTEST makes the shortest side min(size), or the longest max(size) where that is
    smaller, and rounds down as DETR does. With buckets the image lies at the left top of its bucket, its aspect kept,
    at the scale that `wanted_size` gives, or scaled down to fit where no bucket is large enough.

    Raises:
        DataError: the spec forbids resizing and the size is wrong, or cropping would first make a huge image.
    """
    height, width = size
    target_height, target_width = rules.size
    if rules.buckets:
        return Placement(size, sized_for(wanted_size(size, rules), _bucket(size, rules)))
    if rules.resize is Resize.STRETCH:
        return Placement(size, rules.size)
    if rules.resize is Resize.NONE:
        if size != rules.size:
            raise _wrong_size(size, rules, name)
        return Placement(size, size)
    if rules.resize is Resize.LETTERBOX:
        return Placement(size, fitted(size, rules.size))
    if rules.resize is Resize.SHORTEST:
        return Placement(size, shortest(size, rules))
    cover_height, cover_width = (
        floor(target_height / rules.crop_ratio),
        floor(target_width / rules.crop_ratio),
    )
    if rules.resize is Resize.SQUASH:
        resized = (cover_height, cover_width)
    elif cover_height * width <= cover_width * height:  # the width decides
        resized = (int(cover_width * height / width), cover_width)
    else:
        resized = (cover_height, int(cover_height * width / height))
    if resized[0] * resized[1] > MAX_PIXELS:
        raise DataError(
            f"{name or 'the image'} is {width}×{height}: scaled for the centre crop it would be "
            f"{resized[1]}×{resized[0]}",
            expected=f"at most {MAX_PIXELS} pixels after scaling",
            cause="an image that is a thin line",
            fix="remove the image",
        )
    top, left = round((resized[0] - target_height) / 2), round((resized[1] - target_width) / 2)
    return Placement(size, resized, left=-left, top=-top)


def _fill(tensor: NDArray[np.float32], image: Rgb, rules: Preprocessing, placed: Placement) -> None:
    """Write the normalised image into `tensor`, and zeros where it does not cover it."""
    if placed.resized != size_of(image):
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image = picture.resize((placed.resized[1], placed.resized[0]), _filter(rules.resample))
    planes = tensor if rules.layout == "NCHW" else tensor.transpose(2, 0, 1)
    top, left = -placed.top, -placed.left
    height, width = planes.shape[1:]
    pixels = np.asarray(image)[top : top + height, left : left + width].transpose(2, 0, 1)
    pixels = pixels if rules.color == "RGB" else pixels[::-1]
    rows, columns = pixels.shape[1:]
    divisor, mean, std = _normalisation(rules)
    # Planes together where they lie together: each operation gives the interpreter's lock away and waits for it. Where
    # channels lie side by side, three means would be a loop of three values for each pixel.
    for part in [slice(0, 3)] if rules.layout == "NCHW" else [slice(0, 1), slice(1, 2), slice(2, 3)]:
        out = planes[part, :rows, :columns]
        # in place and step by step: no copy in memory, and the very roundings of the usual float32 formula
        np.divide(pixels[part], divisor, out=out, dtype=np.float32)
        out -= mean[part]
        out /= std[part]
    planes[:, rows:] = 0
    planes[:, :rows, columns:] = 0


@lru_cache(maxsize=64)
def _normalisation(rules: Preprocessing) -> tuple[np.float32, NDArray[np.float32], NDArray[np.float32]]:
    """What pixels are divided by (255 for a scale of 1/255); mean and std (3, 1, 1) in the order of the channels."""
    if any(not np.isfinite(value) or value == 0 for value in (rules.scale, *rules.std)):
        raise SpecError(
            f"the spec's scale is {rules.scale}, its std {rules.std}", expected="finite numbers other than 0"
        )
    order = 1 if rules.color == "RGB" else -1
    mean, std = (np.array(values, np.float32)[::order, None, None] for values in (rules.mean, rules.std))
    return np.float32(1 / rules.scale), mean, std


@lru_cache(maxsize=64)
def _shape(rules: Preprocessing, size: tuple[int, int]) -> tuple[int, int, int]:
    height, width = size
    if rules.color not in {"RGB", "BGR"}:
        raise SpecError(f"the spec's color is {rules.color!r}", expected="'RGB' or 'BGR'")
    if min(rules.size) < 1 or not 0 < rules.crop_ratio <= 1:
        raise SpecError(
            f"the spec's size is {rules.size}, its crop_ratio {rules.crop_ratio}",
            expected="height and width of at least 1; a crop_ratio above 0, at most 1",
        )
    if rules.layout == "NCHW":
        return (3, height, width)
    if rules.layout == "NHWC":
        return (height, width, 3)
    raise SpecError(f"the spec's layout is {rules.layout!r}", expected="'NCHW' or 'NHWC'")


def _filter(name: str) -> Image.Resampling:
    try:
        return Image.Resampling[name.upper()]
    except KeyError as error:
        known = ", ".join(filter_.name.lower() for filter_ in Image.Resampling)
        raise SpecError(f"the spec's resample is {name!r}", expected=f"one of: {known}") from error


def _mixed_buckets(found: Sequence[tuple[int, Size]], names: Sequence[str]) -> DataError:
    said = " and ".join(
        f"{names[index] if names else f'image {index}'} belongs to {height}×{width}"
        for index, (height, width) in found
    )
    return DataError(
        f"images of different buckets in one batch: {said} (height×width)",
        expected="images of one bucket: the tensor of a batch has exactly its size",
        fix="make a batch of each group that `group_by_bucket` gives",
    )


def _wrong_size(size: tuple[int, int], rules: Preprocessing, name: str) -> DataError:
    height, width = size
    return DataError(
        f"{name or 'the image'} is {width}×{height} (width×height)",
        expected=f"{rules.size[1]}×{rules.size[0]}: the spec says that images are not resized",
        cause="images of another data set, or a spec that should resize",
        fix='resize the images, or set resize = "stretch" in the spec',
    )
