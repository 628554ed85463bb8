"""Fitting a preset to a graph: which tensor plays which role, and the size the graph asks for.

A preset is a TOML file in `presets/` with one or more variants, tried in order. Names are tried first; a tensor
with another name is taken when it is the only one with the dtype and rank of its role.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

import onnx

from vitesse.backends.protocol import TensorInfo
from vitesse.errors import SpecError, UsageError
from vitesse.sources.signature import check_spec_against, graph_inputs, graph_outputs, graph_signature
from vitesse.spec import Decode, ModelSpec, spec_from_mapping

_FOLDER = resources.files("vitesse.sources") / "presets"


def preset_names() -> tuple[str, ...]:
    """Return the names that `--preset` takes."""
    return tuple(sorted(entry.name[:-5] for entry in _FOLDER.iterdir() if entry.name.endswith(".toml")))


def read_preset(name: str) -> Mapping[str, Any]:
    """Return the content of a preset that exists: `title`, `labels` and `variant`."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def fit_preset(name: str, model: onnx.ModelProto) -> ModelSpec:
    """Return the spec of the preset's first variant that fits the graph.

    Static height and width, and the layout, are the graph's; labels are dropped where the graph has another
    number of classes (a model trained on other data).

    Raises:
        UsageError: no such preset.
        SpecError: no variant fits; the text says what each one looked for.
    """
    if name not in preset_names():
        raise UsageError(f"no preset {name!r}", expected=f"one of: {', '.join(preset_names())}")
    preset = read_preset(name)
    misfits = []
    for variant in preset["variant"]:
        try:
            return fit_variant(variant, preset.get("labels", []), model)
        except SpecError as error:
            misfits.append(f"{variant['title']}: {error.what}")
    raise SpecError(
        f"preset {name!r} ({preset['title']}) does not fit this model\n"
        + "\n".join(f"  - {misfit}" for misfit in misfits)
        + f"\nthe graph has\n{graph_signature(model)}",
        expected="a graph with the tensors that the preset looks for",
        cause="another model family, or another way of exporting it",
        fix="try another preset, or write a spec file (docs/spec.md)",
    )


def fit_variant(variant: Mapping[str, Any], labels: list[str], model: onnx.ModelProto) -> ModelSpec:
    """Return the spec of one variant of a preset; raises SpecError naming the first role that nothing plays."""
    inputs, outputs = graph_inputs(model), graph_outputs(model)
    decode = Decode(variant["decode"])
    image = pick("image_input", variant["image_input"], inputs)
    wanted = variant["outputs"].items()
    roles = {role: pick(role_of(role, decode), names, outputs).name for role, names in wanted}
    if decode is Decode.LOGITS and any(map(_is_boxes, outputs)):
        raise SpecError("looked for class logits alone; the graph gives boxes too, so it is a detector")
    size_names = variant.get("size_input")
    size = pick("size_input", size_names, inputs).name if size_names else None
    raw = {key: value for key, value in variant.items() if key != "title"}
    preprocessing = {**variant["preprocessing"], **geometry(image, variant["preprocessing"]["size"])}
    raw |= {"image_input": image.name, "size_input": size, "outputs": roles, "preprocessing": preprocessing}
    without_labels = spec_from_mapping(raw)
    check_spec_against(model, without_labels)
    try:
        spec = spec_from_mapping({**raw, "labels": labels})
        check_spec_against(model, spec)
    except SpecError:
        return without_labels
    return spec


def role_of(role: str, decode: Decode) -> str:
    """Return the key in the table of shapes: a classifier's logits have no query dimension."""
    return "class_logits" if decode is Decode.LOGITS else role


def geometry(image: TensorInfo, default: Iterable[int]) -> dict[str, Any]:
    """Return layout and (height, width) as the image input has them, `default` sizes where they are symbolic."""
    layout = "NHWC" if image.shape[3] == 3 and image.shape[1] != 3 else "NCHW"
    sides = image.shape[1:3] if layout == "NHWC" else image.shape[2:4]
    size = [
        side if isinstance(side, int) else fallback for side, fallback in zip(sides, default, strict=True)
    ]
    return {"layout": layout, "size": size}


def pick(role: str, names: Iterable[str], entries: tuple[TensorInfo, ...]) -> TensorInfo:
    """Return the tensor for `role`: the first of `names` that has its shape, else the only one that has it.

    Raises:
        SpecError: none or several; the text says which names and which shape were looked for.
    """
    fits, shape = _SHAPES[role]
    names = tuple(names)
    fitting = {entry.name: entry for entry in entries if fits(entry)}
    for name in names:
        if name in fitting:
            return fitting[name]
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    found = f"{len(fitting)} of that kind: {', '.join(fitting)}" if fitting else "none of that kind"
    raise SpecError(
        f"looked for {_WORDS.get(role, f'an output with the {role}')} ({shape}), "
        f"best named {' or '.join(names)}; found {found}"
    )


def _rank(entry: TensorInfo, rank: int) -> bool:
    return len(entry.shape) == rank


def _is_image(entry: TensorInfo) -> bool:
    return entry.dtype.startswith("float") and _rank(entry, 4)


def _is_size(entry: TensorInfo) -> bool:
    return entry.dtype == "int64" and _rank(entry, 2)


def _is_boxes(entry: TensorInfo) -> bool:
    return entry.dtype.startswith("float") and _rank(entry, 3) and entry.shape[-1] == 4


def _is_query_logits(entry: TensorInfo) -> bool:
    return entry.dtype.startswith("float") and _rank(entry, 3) and entry.shape[-1] != 4


def _is_class_logits(entry: TensorInfo) -> bool:
    return entry.dtype.startswith("float") and _rank(entry, 2)


def _is_labels(entry: TensorInfo) -> bool:
    return entry.dtype in ("int64", "int32") and _rank(entry, 2)


_SHAPES: Mapping[str, tuple[Callable[[TensorInfo], bool], str]] = {
    "image_input": (_is_image, "float, 4 dimensions"),
    "size_input": (_is_size, "int64 [N, 2]"),
    "boxes": (_is_boxes, "float [N, queries, 4]"),
    "logits": (_is_query_logits, "float [N, queries, classes]"),
    "class_logits": (_is_class_logits, "float [N, classes]"),
    "labels": (_is_labels, "int64 [N, queries]"),
    "scores": (_is_class_logits, "float [N, queries]"),
}

_WORDS = {
    "image_input": "an image input",
    "size_input": "an input with the original image size",
    "class_logits": "an output with the class logits",
}
