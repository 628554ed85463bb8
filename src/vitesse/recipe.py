"""All options, one frozen class per concern; from the command line, Python keywords or a TOML file.

An unknown key is an error. Nothing here reads the environment.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from vitesse.errors import UsageError
from vitesse.lowering import REWRITES
from vitesse.training.options import check_augmentation

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8+fp16", "fp8+fp16")
# The 16 bits that a GPU multiplies, in the order in which one wants them; the 8 bits that Q/DQ write.
HALF = ("fp16", "bf16")
EIGHT_BITS = ("int8", "fp8")
# Those that cost accuracy and need images to decide on.
LOWERED = frozenset(PRECISIONS) - {"fp32"}
# What every CPU runtime can turn into speed, and what every GPU can.
CPU_PRECISIONS = ("fp32", "int8")
GPU_PRECISIONS = ("fp32", "fp16")
# In the order in which they are tried: a smaller input is exported anew, the others rewrite the graph.
LEVERS = ("size", "decoder", "queries", "tokens")
# Stages behind which the outputs are those of another, smaller network.
SMALLER = (*LEVERS, "distil")
IMPORTANCE = ("taylor", "l1", "bn")
METHODS = ("minmax", "entropy", "percentile", "mse")
ACTIVATIONS = ("auto", "int8", "uint8")


@dataclass(frozen=True)
class DataOptions:
    """Images: `limit` bounds the validation images (0 = all), `calib_images` those for calibration (up to 512)."""

    calib_data: str | None = None
    limit: int = 0
    calib_images: int = 500


@dataclass(frozen=True)
class SourceOptions:
    """How a model that is not ONNX yet becomes it; see `sources.source.ExportOptions`.

    Args:
        weights: a file to take instead of downloading a published model's.
        dynamic: which of batch, height and width stay open; empty = none.
        size: image (height, width) in pixels; empty = the model's own.
        settings: what the weights do not show, such as DETR's number of attention heads.
    """

    weights: str | None = None
    opset: int = 18
    dynamic: tuple[str, ...] = ("batch",)
    size: tuple[int, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size and (len(self.size) != 2 or min(self.size) < 1):
            raise UsageError(
                f"source.size = {list(self.size)}", expected="height and width in pixels, as 800x1333"
            )


@dataclass(frozen=True)
class HalfOptions:
    """How FP16 and BF16 are decided.

    Args:
        images: of the calibration images, whose activations are looked at.
        headroom: a value above 65504 / headroom counts as unsafe: other images go beyond what these showed.
        keep_io: inputs and outputs stay float32.
        allow_random: without images, look at the activations of random ones; what real ones do stays unknown.
    """

    images: int = 32
    headroom: float = 4.0
    keep_io: bool = True
    allow_random: bool = False

    def __post_init__(self) -> None:
        if self.headroom < 1:
            raise UsageError(f"half.headroom = {self.headroom:g}", expected="1 or more")
        if self.images < 1:
            raise UsageError(f"half.images = {self.images}", expected="1 or more")


@dataclass(frozen=True)
class Int8Options:
    """How activations are calibrated and weights stored; FP8 takes its method from here, too.

    Args:
        method: how a range is chosen from the values seen: `minmax` covers all; `percentile` the `percentile` % nearest
            the middle; `entropy` loses least information; `mse` makes the smallest mean squared error.
        weight_bits: 8, or 7 where pairs of u8 × s8 products would saturate 16 bits (no VNNI); 0 = as the CPU needs.
        activations: `int8`, symmetric with zero point 0, which TensorRT takes; `uint8`, with a zero point, which CPUs
            multiply fastest; `auto`: what the target takes.
        smooth: SmoothQuant's alpha: how much of the outliers of activations moves into the weights; 0 = none.
        bias_correction: take the mean error of rounded weights out of the bias.
        attention: quantise the products of attention too, where the target fuses them.
    """

    method: str = "percentile"
    percentile: float = 99.99
    weight_bits: int = 0
    activations: str = "auto"
    smooth: float = 0.0
    bias_correction: bool = True
    attention: bool = False

    def __post_init__(self) -> None:
        if self.weight_bits not in (0, 7, 8):
            raise UsageError(
                f"int8.weight_bits = {self.weight_bits}", expected="7, 8, or 0 for the CPU's choice"
            )
        if self.method not in METHODS:
            raise UsageError(f"int8.method = {self.method!r}", expected=f"one of {', '.join(METHODS)}")
        if self.activations not in ACTIVATIONS:
            raise UsageError(
                f"int8.activations = {self.activations!r}", expected=f"one of {', '.join(ACTIVATIONS)}"
            )
        if not 50 < self.percentile <= 100:
            raise UsageError(f"int8.percentile = {self.percentile:g}", expected="above 50, up to 100")
        if not 0 <= self.smooth <= 1:
            raise UsageError(f"int8.smooth = {self.smooth:g}", expected="0 (off) to 1")


@dataclass(frozen=True)
class SearchOptions:
    """How the set of layers to lower is searched for.

    Args:
        images: of the calibration images, on which trials are scored.
        minutes: no new trial is begun after that; what was found until then is used.
    """

    images: int = 256
    minutes: float = 10.0

    def __post_init__(self) -> None:
        if self.images < 1 or self.minutes <= 0:
            raise UsageError(
                f"search: {self.images} images, {self.minutes:g} minutes", expected="more than 0"
            )


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Args:
        seconds: of each interleaved run; it goes on until `min_rounds` are done, too. Throughput takes a quarter.
        parity_images: whose outputs are compared with the untouched model's.
        threads: of one session; 0 = every usable core.
    """

    seconds: float = 4.0
    min_rounds: int = 12
    parity_images: int = 16
    threads: int = 0


@dataclass(frozen=True)
class CompressOptions:
    """How a checkpoint is made smaller before everything else: pruned, then taught by the original.

    Args:
        share: of the operations that stay, above 0; 1 leaves the network as it is.
        train_data: images to learn from, and for Taylor scores: COCO, class folders, or bare images without `labels`.
        train_val: images to pick the best weights on; without, those for calibration.
        seconds, steps: how long to train; `steps`, where it is not 0, instead of `seconds`.
        method: how units are scored, see `compress.importance.scores`.
        images: of the training images, that units are scored on.
        multiple: widths stay multiples of it; 0 = 16 where a precision of 8 bits follows, else 8.
        decoder_layers: keep only the first of a DETR's decoder layers; 0 = all.
        labels: whether the labels of the training images are used; False = only the original's answers.
        augmentation: of the training images, one of `training.options.AUGMENTATIONS`.
        batch, rate: see `training.options.TrainOptions`.
    """

    share: float = 1.0
    train_data: str | None = None
    train_val: str | None = None
    seconds: float = 1200.0
    steps: int = 0
    method: str = "taylor"
    images: int = 256
    multiple: int = 0
    decoder_layers: int = 0
    labels: bool = True
    augmentation: str = "usual"
    batch: int = 128
    rate: float = 3e-4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(
                f"--compress {self.share:g}",
                expected="the share of operations that stays, above 0 and at most 1, such as 0.7",
            )
        if self.method not in IMPORTANCE:
            raise UsageError(f"compress.method = {self.method!r}", expected=f"one of {', '.join(IMPORTANCE)}")
        check_augmentation("compress.augmentation", self.augmentation)
        if self.steps < 0:
            raise UsageError(f"--train-steps {self.steps}", expected="1 or more, or 0 for --train-time")
        if self.seconds <= 0 or min(self.multiple, self.decoder_layers) < 0:
            raise UsageError(
                f"compress: {self.seconds:g} seconds, multiple {self.multiple}, "
                f"{self.decoder_layers} decoder layers",
                expected="more than 0 seconds, the others 0 or more",
            )
        if min(self.images, self.batch) < 1 or self.rate <= 0:
            raise UsageError(
                f"compress: {self.images} images, batch {self.batch}, rate {self.rate:g}",
                expected="1 image or more, and a rate above 0",
            )

    @property
    def asked(self) -> bool:
        """Whether there is anything to cut."""
        return self.share < 1 or self.decoder_layers > 0


@dataclass(frozen=True)
class Recipe:
    """Everything `optimize` needs to know besides model, data and output folder.

    Args:
        target: `cpu` (every CPU runtime installed) or one runtime's name.
        max_drop: accuracy budget in points of AP or top-1 (0.5 = half a point).
        latency_budget_ms: the latency the user needs, milliseconds at batch 1; None = no bound.
        precisions: subset of `PRECISIONS`; empty = what the target turns into speed.
        levers: subset of `LEVERS`: ways to make the network itself smaller; none unless asked for.
        buckets: into how many tensor sizes images of all sizes are laid, as rows of their own; 0 = no such rows.
        lower: operators to rewrite into simpler ones, by the names of `lowering.REWRITES`.
    """

    target: str = "cpu"
    max_drop: float = 0.5
    latency_budget_ms: float | None = None
    precisions: tuple[str, ...] = ()
    levers: tuple[str, ...] = ()
    buckets: int = 0
    preset: str | None = None
    spec: str | None = None
    lower: tuple[str, ...] = ()
    source: SourceOptions = field(default_factory=SourceOptions)
    data: DataOptions = field(default_factory=DataOptions)
    half: HalfOptions = field(default_factory=HalfOptions)
    int8: Int8Options = field(default_factory=Int8Options)
    search: SearchOptions = field(default_factory=SearchOptions)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    compress: CompressOptions = field(default_factory=CompressOptions)

    def __post_init__(self) -> None:
        wrong = [name for name in self.precisions if name not in PRECISIONS]
        if wrong:
            raise UsageError(
                f"unknown precision {', '.join(map(repr, wrong))}",
                expected=f"some of {', '.join(PRECISIONS)}",
            )
        for option, names, known in (("lower", self.lower, REWRITES), ("levers", self.levers, LEVERS)):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise UsageError(f"--{option} {unknown[0]}", expected=f"some of {', '.join(known)}")
        # What NaN and infinity are compared with is false.
        if not 0 <= self.max_drop < math.inf:
            raise UsageError(f"--max-drop {self.max_drop:g}", expected="points of AP or top-1, 0 or more")
        if not 0 < self.measure.seconds < math.inf:
            raise UsageError(
                f"--seconds {self.measure.seconds:g}", expected="more than 0, such as 1; usual is 4"
            )
        if self.data.limit < 0:
            raise UsageError(f"--limit {self.data.limit}", expected="1 or more images; 0 takes all")
        if self.latency_budget_ms is not None and self.latency_budget_ms <= 0:
            raise UsageError(
                f"--latency-budget {self.latency_budget_ms} ms", expected="more than 0, as in 16ms"
            )
        if self.buckets < 0:
            raise UsageError(f"--buckets {self.buckets}", expected="1 or more, or 0 for none")
        if not 1 <= self.data.calib_images <= 512:
            raise UsageError(f"--calib-images {self.data.calib_images}", expected="1 to 512")


Options = (
    SourceOptions | DataOptions | HalfOptions | Int8Options | SearchOptions | MeasureOptions | CompressOptions
)
Section = TypeVar("Section", bound="Recipe | Options")


def load_recipe(path: Path, base: Recipe | None = None) -> Recipe:
    """Read a TOML file over `base`; raises UsageError for a missing file, bad TOML, an unknown key or a wrong type."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}", expected="a TOML file") from error
    return merge(base or Recipe(), raw)


def merge(base: Section, raw: Mapping[str, Any], *, section: str = "") -> Section:
    """Return `base` (a recipe or one of its sections) with the values of `raw` set."""
    known = {entry.name: getattr(base, entry.name) for entry in fields(base)}
    changes: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise UsageError(
                f"unknown key {section + key!r} in the recipe", expected=f"one of: {', '.join(sorted(known))}"
            )
        current = known[key]
        if isinstance(current, Options):
            if not isinstance(value, Mapping):
                raise UsageError(f"{section + key} = {value!r} in the recipe", expected=f"a table [{key}]")
            changes[key] = merge(current, value, section=f"{section}{key}.")
        else:
            changes[key] = _converted(section + key, value, current)
    return replace(base, **changes)


def _converted(key: str, value: Any, current: Any) -> Any:
    if isinstance(current, Mapping) and isinstance(value, Mapping):
        return {**current, **{str(name): str(setting) for name, setting in value.items()}}
    if isinstance(current, tuple):
        return tuple(value) if isinstance(value, list) else (value,)
    allowed: tuple[type, ...] = (str, float, int) if current is None else (type(current),)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(current, bool)):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise UsageError(f"{key} = {value!r} in the recipe", expected=names)
    return value
