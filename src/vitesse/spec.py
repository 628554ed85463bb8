"""What a model needs to be run: pixels in, meaning of the outputs, labels.

A spec travels inside the ONNX file (`metadata_props["vitesse.spec"]`, JSON), so that an artifact is complete by
itself. A foreign ONNX gets one from `--spec spec.toml` or `--preset NAME`; see `sources/spec_file.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from vitesse.errors import SpecError

METADATA_KEY = "vitesse.spec"


class Task(StrEnum):
    """What the outputs mean."""

    DETECTION = "detection"
    CLASSIFICATION = "classification"


class Resize(StrEnum):
    """How an image becomes the model's input size."""

    STRETCH = "stretch"  # straight to (height, width), aspect not kept
    CROP = "crop"  # shortest side to height / crop_ratio, then the centre crop
    SQUASH = "squash"  # straight to size / crop_ratio, aspect not kept, then the centre crop
    LETTERBOX = (
        "letterbox"  # aspect kept, longest side fits; padded right and below with zeros after normalising
    )
    SHORTEST = "shortest"  # aspect kept: shortest side to min(size), longest at most max(size); the tensor is as large
    # as the largest image of the batch, padded right and below with zeros after normalising
    NONE = "none"  # the image must already have the size


class Decode(StrEnum):
    """How raw outputs become boxes or classes."""

    LOGITS = "logits"  # classification: (N, classes)
    DETR_SOFTMAX = "detr_softmax"  # logits (N, Q, classes + 1), last class is no-object; boxes cxcywh in 0..1
    DETR_SIGMOID = (
        "detr_sigmoid"  # logits (N, Q, classes), top-k over queries × classes; boxes cxcywh in 0..1
    )
    POSTPROCESSED = (
        "postprocessed"  # labels (N, Q), boxes xyxy in pixels of the original image, scores (N, Q)
    )


@dataclass(frozen=True)
class Preprocessing:
    """Pixels → tensor: RGB uint8, resized, times `scale`, minus `mean`, over `std`.

    `size` is (height, width) in pixels. `mean` and `std` are per RGB channel in units of the scaled values.
    `layout` is NCHW or NHWC, `color` RGB or BGR (order of the tensor's channels).
    `resample` is a Pillow filter: bilinear, bicubic, nearest, lanczos, box or hamming.
    `buckets` are the (height, width) that a tensor may have, in pixels; empty: the resize rule alone decides. With
    buckets every image keeps its aspect and is padded right and below to the bucket that wastes least; see
    docs/resolution.md.
    """

    size: tuple[int, int]
    resize: Resize = Resize.STRETCH
    resample: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layout: str = "NCHW"
    color: str = "RGB"
    crop_ratio: float = 1.0
    buckets: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if any(min(bucket) < 1 for bucket in self.buckets) or len(set(self.buckets)) != len(self.buckets):
            raise SpecError(
                f"buckets = {[list(bucket) for bucket in self.buckets]}",
                expected="different (height, width), each of at least 1 pixel",
                fix="write for example: buckets = [[800, 1088], [1088, 800]]",
            )
        if self.buckets and self.resize in (Resize.CROP, Resize.SQUASH):
            raise SpecError(
                f"buckets beside resize = {self.resize.value!r}",
                expected="buckets with resize shortest, letterbox, stretch or none",
                cause="centre crops are all of one size",
                fix='leave buckets out, or set resize = "letterbox"',
            )


@dataclass(frozen=True)
class ModelSpec:
    """Everything between an image file and a result.

    Args:
        task: detection or classification.
        decode: how outputs are read.
        image_input: name of the graph input that takes the image tensor.
        outputs: role → graph output name; roles are `logits`; `logits`, `boxes`; or `labels`, `boxes`, `scores`.
        preprocessing: pixels → tensor.
        size_input: graph input taking the original image size as int64 (N, 2), if there is one.
        size_order: "wh" or "hw", the order inside `size_input`.
        valid_size_input: graph input taking the (height, width) that the image covers of the tensor, int64
            (N, 2); the rest is padding, which the graph masks. Boxes in 0..1 are then relative to the image.
        labels: class names by index; may be empty when unknown.
        top_k: detections kept per image by `detr_sigmoid`.
        published: accuracy published for the model, metric → value in 0..1.
    """

    task: Task
    decode: Decode
    image_input: str
    outputs: Mapping[str, str]
    preprocessing: Preprocessing
    size_input: str | None = None
    size_order: str = "wh"
    valid_size_input: str | None = None
    labels: tuple[str, ...] = ()
    top_k: int = 300
    published: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = ROLES[self.decode]
        if set(self.outputs) != set(expected):
            raise SpecError(
                f"the spec names outputs for {sorted(self.outputs)}",
                expected=f"exactly {sorted(expected)} for decode = {self.decode.value!r}",
                fix='write for example: outputs = { logits = "logits", boxes = "boxes" }',
            )
        if (self.task is Task.CLASSIFICATION) != (self.decode is Decode.LOGITS):
            raise SpecError(
                f"task {self.task.value!r} with decode {self.decode.value!r}",
                expected="classification with logits; detection with one of the other decodes",
            )

    def to_json(self) -> str:
        """Serialise for `metadata_props`; a spec without buckets reads as it did before there were any."""
        raw = asdict(self)
        if not self.preprocessing.buckets:
            del raw["preprocessing"]["buckets"]
        return json.dumps(raw, sort_keys=True)

    def with_preprocessing(self, raw: Mapping[str, Any]) -> ModelSpec:
        """Return the spec with other rules, as `to_json` writes them; raises SpecError where they cannot be."""
        return spec_from_mapping({**json.loads(self.to_json()), "preprocessing": raw})

    def label(self, index: int) -> str:
        """Return the class name, or `class 7` when names are unknown."""
        return self.labels[index] if 0 <= index < len(self.labels) else f"class {index}"


ROLES: Mapping[Decode, tuple[str, ...]] = {
    Decode.LOGITS: ("logits",),
    Decode.DETR_SOFTMAX: ("logits", "boxes"),
    Decode.DETR_SIGMOID: ("logits", "boxes"),
    Decode.POSTPROCESSED: ("labels", "boxes", "scores"),
}


def spec_from_mapping(raw: Mapping[str, Any]) -> ModelSpec:
    """Build a spec from parsed TOML or JSON; an unknown or missing key is a SpecError that names it."""
    try:
        values = _checked(raw, ModelSpec)
        values["task"] = Task(values["task"])
        values["decode"] = Decode(values["decode"])
        values["preprocessing"] = _preprocessing(values["preprocessing"])
        values["labels"] = tuple(str(label) for label in values.get("labels", ()))
        values["outputs"] = dict(values["outputs"])
        return ModelSpec(**values)
    except (KeyError, ValueError, TypeError) as error:
        raise SpecError(
            f"the spec is incomplete or wrong: {error}",
            expected="task, decode, image_input, outputs and preprocessing.size",
            fix="see docs/spec.md, or start from `--preset detr`",
        ) from error


def _preprocessing(raw: Mapping[str, Any]) -> Preprocessing:
    values = _checked(raw, Preprocessing)
    height, width = (int(side) for side in values["size"])
    values["size"] = (height, width)
    values["resize"] = Resize(values.get("resize", Resize.STRETCH))
    for name in ("mean", "std"):
        if name in values:
            red, green, blue = (float(channel) for channel in values[name])
            values[name] = (red, green, blue)
    if "buckets" in values:
        values["buckets"] = tuple((int(high), int(wide)) for high, wide in values["buckets"])
    return Preprocessing(**values)


def _checked(raw: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    known = {entry.name for entry in fields(kind)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise SpecError(
            f"unknown key {', '.join(map(repr, unknown))} in the spec",
            expected=f"some of: {', '.join(sorted(known))}",
            cause="a typing error, or a key of another version",
        )
    return dict(raw)
