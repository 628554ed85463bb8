"""`preprocessor_config.json` of any age → Preprocessing, without the image processors of transformers.

Those need torchvision, and what they do with the numbers of the file is little: resize, perhaps crop the centre,
rescale, normalise. What a file leaves out is the default of the class it names, or of its model type where it names
none. Result and Pillow-based processors of transformers agree to rounding; the ones based on torchvision resize
with another implementation and differ from both by up to one grey level in a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitesse.data.preprocess import place
from vitesse.errors import SpecError
from vitesse.spec import Preprocessing, Resize

Size = tuple[int, int]
Channels = tuple[float, float, float]

HALF: Channels = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers of its filters (PIL.Image.Resampling), as the files store them.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
BILINEAR, BICUBIC = 2, 3
# Where a processor keeps the aspect and the graph's size is fixed, the size that such a photograph would get.
USUAL_PHOTOGRAPH: Size = (480, 640)


@dataclass(frozen=True)
class Defaults:
    """What a processor class does where its file is silent.

    `square`: whether a size given as one number is both sides; else it is the shortest side.
    `longest`: the longest side allowed where the size is one number for the shortest side.
    `multiple`: of pixels, to which both sides are rounded down where the aspect is kept.
    """

    size: Mapping[str, int]
    resample: int = BILINEAR
    mean: Channels = HALF
    std: Channels = HALF
    crop: int | None = None
    normalise: bool = True
    square: bool = True
    longest: int | None = None
    multiple: int = 1


_VIT = Defaults({"height": 224, "width": 224})
_DETR = Defaults(
    {"shortest_edge": 800, "longest_edge": 1333},
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    square=False,
    longest=1333,
)
PROCESSORS: Mapping[str, Defaults] = {
    "ViT": _VIT,
    "DeiT": Defaults({"height": 256, "width": 256}, resample=BICUBIC, crop=224),
    "Beit": Defaults({"height": 224, "width": 224}, resample=BICUBIC),
    "Bit": Defaults(
        {"shortest_edge": 224}, resample=BICUBIC, mean=CLIP_MEAN, std=CLIP_STD, crop=224, square=False
    ),
    "DINOv3ViT": Defaults({"height": 224, "width": 224}, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    **dict.fromkeys(("Detr", "ConditionalDetr", "DeformableDetr", "RfDetr"), _DETR),
    "Yolos": replace(_DETR, multiple=16),
    "RTDetr": Defaults(
        {"height": 640, "width": 640}, mean=IMAGENET_MEAN, std=IMAGENET_STD, normalise=False, square=False
    ),
}
# Some files, among them those of the first ViTs, name no class; transformers then goes by the model's type.
OF_MODEL_TYPE: Mapping[str, str] = {
    **dict.fromkeys(("vit", "vit_msn", "swin", "swinv2"), "ViT"),
    "deit": "DeiT",
    "beit": "Beit",
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "Bit"),
    "dinov3_vit": "DINOv3ViT",
    **dict.fromkeys(("detr", "table-transformer"), "Detr"),
    **dict.fromkeys(("conditional_detr", "dab-detr"), "ConditionalDetr"),
    **dict.fromkeys(("deformable_detr", "lw_detr"), "DeformableDetr"),
    "yolos": "Yolos",
    "rf_detr": "RfDetr",
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), "RTDetr"),
}


def preprocessing_of(
    config: Mapping[str, Any],
    *,
    default_size: Size,
    model_type: str | None = None,
    dynamic: bool = False,
) -> Preprocessing:
    """Read a parsed `preprocessor_config.json`.

    A processor that keeps the aspect (`shortest_edge`, as of DETR) gives images of any size. For a graph of a fixed
    size they are stretched to the size that a 640×480 photograph would get: 800×1066 for DETR; boxes are relative
    to the image, so that they stay right. With `dynamic` they keep their aspect (Resize.SHORTEST).

    Args:
        default_size: (height, width) in pixels of a model whose processor does not resize.
        model_type: of the model's `config.json`, for a file that names no processor class.
        dynamic: whether height and width of the graph are open.

    Raises:
        SpecError: the processor is unknown, or does what a spec cannot say; the key is named.
    """
    defaults = PROCESSORS[_stem(config, model_type)]
    mean, std = _normalisation(config, defaults)
    resize, size, crop_ratio = _geometry(config, defaults, default_size, dynamic)
    return Preprocessing(
        size=size,
        resize=resize,
        resample=_resample(config, defaults),
        scale=_number(config, "rescale_factor", 1 / 255) if _given(config, "do_rescale", True) else 1.0,
        mean=mean,
        std=std,
        crop_ratio=crop_ratio,
    )


def _stem(config: Mapping[str, Any], model_type: str | None) -> str:
    """The class's name without what changed over the years: `DetrFeatureExtractor`, `DetrImageProcessorFast` → Detr."""
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    if named is None:
        stem = OF_MODEL_TYPE.get(model_type or "")
    else:
        stem = str(named)
        for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            stem = stem.removesuffix(ending)
    if stem is None or stem not in PROCESSORS:
        raise _unreadable(
            f"the image processor {named}" if named else f"no image processor for model type {model_type!r}",
            f"one of: {', '.join(f'{known}ImageProcessor' for known in PROCESSORS)}",
        )
    return stem


def _geometry(
    config: Mapping[str, Any], defaults: Defaults, default_size: Size, dynamic: bool
) -> tuple[Resize, Size, float]:
    """How the image gets its size: (rule, (height, width), crop ratio)."""
    crop = _crop(config, defaults)
    if not _given(config, "do_resize", True):
        if crop is not None:
            raise _unreadable(
                "do_center_crop without do_resize", "do_resize: a crop of the untouched image cannot be said"
            )
        return Resize.NONE, default_size, 1.0
    size = _size(config, defaults)
    if "height" in size:
        exact = (size["height"], size["width"])
        return (Resize.STRETCH, exact, 1.0) if crop is None else (Resize.SQUASH, crop, _ratio(crop, exact))
    if "max_height" in size:
        return Resize.STRETCH, (size["max_height"], size["max_width"]), 1.0
    shortest = size.get("shortest_edge", size.get("longest_edge", 0))
    if crop is not None:
        if "longest_edge" in size or crop[0] != crop[1]:
            raise _unreadable(f"size {size} with a crop to {crop}", "a crop to a square of the shortest side")
        return Resize.CROP, crop, _ratio(crop, (shortest, shortest))
    if "longest_edge" not in size:
        return Resize.STRETCH, (shortest, shortest), 1.0
    kept = Preprocessing((shortest, size["longest_edge"]), resize=Resize.SHORTEST)
    if dynamic:
        return Resize.SHORTEST, kept.size, 1.0
    height, width = (side - side % defaults.multiple for side in place(USUAL_PHOTOGRAPH, kept).resized)
    return Resize.STRETCH, (height, width), 1.0


def _size(config: Mapping[str, Any], defaults: Defaults) -> Mapping[str, int]:
    """`size` in today's form: height and width, max_height and max_width, or shortest and/or longest edge."""
    size = _given(config, "size", defaults.size)
    if isinstance(size, int) and defaults.square:
        size = {"height": size, "width": size}
    elif isinstance(size, int):
        size = {"shortest_edge": size}
        longest = _given(config, "max_size", defaults.longest)
        if longest is not None:
            size["longest_edge"] = longest
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    kinds = (
        {"height", "width"},
        {"max_height", "max_width"},
        {"shortest_edge"},
        {"longest_edge"},
        {"shortest_edge", "longest_edge"},
    )
    if isinstance(size, Mapping):
        size = {key: side for key, side in size.items() if side is not None}
        if set(size) in kinds and all(isinstance(side, int) and side > 0 for side in size.values()):
            return size
    raise _unreadable(f"size {size}", "a number, height and width, or shortest_edge and longest_edge")


def _crop(config: Mapping[str, Any], defaults: Defaults) -> Size | None:
    """(height, width) of the centre crop, or None where the processor does not crop."""
    if not _given(config, "do_center_crop", defaults.crop is not None):
        return None
    crop = _given(config, "crop_size", defaults.crop or 224)
    if isinstance(crop, int) and crop > 0:
        return crop, crop
    if isinstance(crop, Mapping) and {"height", "width"} <= set(crop):
        return int(crop["height"]), int(crop["width"])
    raise _unreadable(f"crop_size {crop}", "a number, or height and width")


def _ratio(inner: Size, outer: Size) -> float:
    """Return the crop ratio whose division of `inner`, rounded down, is `outer` exactly."""
    ratio = inner[0] / outer[0]
    while math.floor(inner[0] / ratio) < outer[0]:  # the division came out a hair below a whole number
        ratio = math.nextafter(ratio, 0)
    if ratio > 1 or tuple(math.floor(side / ratio) for side in inner) != outer:
        raise _unreadable(
            f"a crop to {inner} of an image of {outer}", "a smaller crop of the same aspect (height, width)"
        )
    return ratio


def _normalisation(config: Mapping[str, Any], defaults: Defaults) -> tuple[Channels, Channels]:
    if not _given(config, "do_normalize", defaults.normalise):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return _channels(config, "image_mean", defaults.mean), _channels(config, "image_std", defaults.std)


def _channels(config: Mapping[str, Any], key: str, default: Channels) -> Channels:
    given = _given(config, key, default)
    values = (given,) * 3 if isinstance(given, int | float) else tuple(given)
    if len(values) != 3:
        raise _unreadable(f"{key} {given}", "one number, or one for each of red, green and blue")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _resample(config: Mapping[str, Any], defaults: Defaults) -> str:
    number = _given(config, "resample", defaults.resample)
    if not isinstance(number, int) or not 0 <= number < len(FILTERS):
        raise _unreadable(f"resample {number}", f"a number of Pillow's filters, 0 to {len(FILTERS) - 1}")
    return FILTERS[number]


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = _given(config, key, default)
    if not isinstance(value, int | float) or value <= 0:
        raise _unreadable(f"{key} {value}", "a number above 0")
    return float(value)


def _given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of `key`; null counts as not given, as in transformers."""
    value = config.get(key)
    return default if value is None else value


def _unreadable(what: str, expected: str) -> SpecError:
    return SpecError(
        f"preprocessor_config.json: {what} is not understood",
        expected=expected,
        cause="a processor Vitesse does not know, or a damaged file",
        fix="say how images are prepared with --spec spec.toml; see docs/spec.md",
    )
