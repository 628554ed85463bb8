"""Where a model's spec comes from: a file, a preset, or the model's own metadata."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from vitesse.backends.protocol import TensorInfo
from vitesse.errors import SpecError, UsageError
from vitesse.metadata import read_spec
from vitesse.sources.preset import fit_preset, geometry, pick, preset_names, role_of
from vitesse.sources.signature import (
    check_spec_against,
    describe,
    graph_inputs,
    graph_outputs,
    graph_signature,
)
from vitesse.sources.source import Given
from vitesse.spec import ROLES, Decode, ModelSpec, spec_from_mapping

_GUESS_ORDER = (Decode.POSTPROCESSED, Decode.DETR_SOFTMAX, Decode.LOGITS)
_NAMES: Mapping[str, tuple[str, ...]] = {
    "image_input": ("images", "pixel_values", "input", "x"),
    "size_input": ("orig_target_sizes",),
    "logits": ("logits", "pred_logits", "output"),
    "boxes": ("pred_boxes", "boxes"),
    "labels": ("labels",),
    "scores": ("scores",),
}


def find_spec(model: onnx.ModelProto, *, preset: str | None, spec_file: Path | None) -> ModelSpec:
    """Return the spec from `spec_file`, else from `preset`, else from the model's metadata.

    Raises:
        UsageError: both a file and a preset, or an unknown preset.
        SpecError: none of the three; the file is missing or wrong; or the graph does not fit. Where there is
            no spec, the text shows the graph's inputs and outputs and an example spec that fits them.
    """
    if spec_file is not None and preset is not None:
        raise UsageError(
            f"both a spec file ({spec_file}) and the preset {preset!r}", expected="one of --spec and --preset"
        )
    if spec_file is not None:
        spec = read_spec_file(spec_file)
    elif preset is not None:
        spec = fit_preset(preset, model)
    else:
        found = read_spec(model)
        if found is None:
            raise _no_spec(model)
        spec = found
    check_spec_against(model, spec)
    return spec


def example_spec(model: onnx.ModelProto) -> str:
    """Return a spec in TOML that fits the graph as far as names, dtypes and shapes tell; the rest is marked."""
    for decode in _GUESS_ORDER:
        try:
            return _example(model, decode)
        except SpecError:
            continue
    return _example_blank(model)


def read_spec_file(path: Path) -> ModelSpec:
    """Read a spec in TOML; raises SpecError for a file that is missing, not TOML, or no spec."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"no spec file at {path}", expected="a TOML file, see docs/spec.md") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read the spec file {path}: {error}", expected="a TOML file in UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(
            f"the spec file {path} is not TOML: {error}",
            expected="a TOML file, see docs/spec.md",
            fix="correct the line that the message names",
        ) from error
    return spec_from_mapping(raw)


def given_from(
    spec_file: str | Path | None, settings: Mapping[str, str] | Iterable[tuple[str, str]] | None
) -> Given:
    """Return what `--spec` and `--set` say about a model that is not ONNX; raises as `read_spec_file`.

    Without a file the source's own spec holds: for a checkpoint that is the original's evaluation.
    """
    return Given(None if spec_file is None else read_spec_file(Path(spec_file)), dict(settings or ()))


def _no_spec(model: onnx.ModelProto) -> SpecError:
    return SpecError(
        "the model does not say how it is to be fed and read. It has\n"
        f"{graph_signature(model)}\nA spec for it could begin like this:\n\n{example_spec(model)}",
        expected="a spec: --spec FILE, --preset NAME, or the metadata of a model that Vitesse exported",
        cause="the model was exported by another tool",
        fix=f"--preset {'|'.join(preset_names())}, or save the lines above as spec.toml, "
        "correct them, and give --spec spec.toml",
    )


def _example(model: onnx.ModelProto, decode: Decode) -> str:
    inputs, outputs = graph_inputs(model), graph_outputs(model)
    image = pick("image_input", _NAMES["image_input"], inputs)
    roles = {role: pick(role_of(role, decode), _NAMES[role], outputs) for role in ROLES[decode]}
    size_lines = []
    if decode is Decode.POSTPROCESSED and len(inputs) > 1:
        size = pick("size_input", _NAMES["size_input"], inputs).name
        size_lines = [f'size_input = "{size}"', 'size_order = "wh"  # or "hw"']
    return _toml(image, decode, {role: entry.name for role, entry in roles.items()}, size_lines)


def _example_blank(model: onnx.ModelProto) -> str:
    """Return a spec to fill in, for a graph whose outputs do not show what they are."""
    inputs, outputs = graph_inputs(model), graph_outputs(model)
    image = next((entry for entry in inputs if len(entry.shape) == 4), None)
    if image is None:
        return (
            f"# No input has the four dimensions of an image; the first one is `{inputs[0].name}` "
            f"{describe(inputs[0])}.\n# Export the model with a float32 input [N, 3, height, width]."
        )
    seen = ", ".join(f"`{entry.name}` {describe(entry)}" for entry in outputs)
    return f"# None of the outputs tells its role: {seen}\n" + _toml(
        image, Decode.LOGITS, {"logits": outputs[0].name}, []
    )


def _toml(image: TensorInfo, decode: Decode, roles: Mapping[str, str], size_lines: list[str]) -> str:
    task = "classification" if decode is Decode.LOGITS else "detection"
    found = geometry(image, (224, 224) if decode is Decode.LOGITS else (640, 640))
    symbolic = any(isinstance(side, str) for side in image.shape[1:])
    alternative = '  # or "detr_sigmoid"' if decode is Decode.DETR_SOFTMAX else ""
    outputs = ", ".join(f'{role} = "{name}"' for role, name in roles.items())
    lines = [
        f'task = "{task}"',
        f'decode = "{decode}"{alternative}',
        f'image_input = "{image.name}"',
        *size_lines,
        f"outputs = {{ {outputs} }}",
        "labels = []  # class names in the order of the model's indices",
        "",
        "[preprocessing]",
        f"size = {found['size']}  # height, width"
        + ("; the graph leaves them open: check" if symbolic else ""),
        f'layout = "{found["layout"]}"',
        'resize = "stretch"  # or "crop", "letterbox", "none"',
        'resample = "bilinear"',
        "mean = [0.485, 0.456, 0.406]  # check: ImageNet values, after dividing by 255",
        "std = [0.229, 0.224, 0.225]",
    ]
    return "\n".join(lines)
