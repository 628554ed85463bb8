"""A checkpoint of google-research/vision_transformer or big_vision (`.npz`) → a ViT, ready to be exported.

.npz ──read_checkpoint──▶ Checkpoint: sizes and tensors ──build──▶ ViT for one image size ──▶ TorchSource
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from vitesse.errors import ModelError, SpecError, UsageError
from vitesse.export.torch_onnx import Network, TorchSource
from vitesse.sources.npz_weights import npz_names, read_npz
from vitesse.sources.source import ExportOptions, Given
from vitesse.sources.vit import Pooling, ViT, ViTConfig, resized, sine_position
from vitesse.sources.vit_layout import (
    Arrays,
    Entry,
    Naming,
    entries,
    infer_config,
    naming_of,
    parameters_of,
    without_group_norm_axes,
)
from vitesse.sources.vit_resnet import Size
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task
from vitesse.storage import sha256_of

_LISTED = 8
# Trained without a learned position embedding, at this size: the "better plain ViT baselines" (arXiv:2205.01580).
_SINE_SIZE = 224


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        config: the model at the image size it was trained for.
        state: tensors by name in `ViT.state_dict()`, without those of `position.`.
        class_token: (1, 1, hidden), its position added; None where pooling has no class token.
        grid: position embeddings of the patches, (1, hidden, rows, columns).
    """

    config: ViTConfig
    state: Mapping[str, Tensor]
    class_token: Tensor | None
    grid: Tensor


def open_vit(path: Path, given: Given | None = None, *, title: str = "") -> TorchSource:
    """Open an `.npz` checkpoint as a source.

    Pictures are stretched to the size the position embedding was trained for and brought to −1..1, as in the original
    evaluation; labels are unknown unless given. Height and width can be dynamic; they are then multiples of the patch.

    Args:
        given: settings are `grid=ROWSxCOLUMNS`, for a position embedding that is not square, and `position=sine`,
            for models of big_vision trained without a learned one.
        title: the name by which the user asked for it.

    Raises:
        ModelError: the file is not a ViT checkpoint, or arrays are missing, not understood or of another shape.
        UsageError: an unknown setting, or a wrong value.
        SpecError: the spec is not that of a classifier.
    """
    given = given or Given()
    given.refuse_unknown("a ViT checkpoint", "grid", "position")
    check_spec(path, given.spec)
    checkpoint = read_checkpoint(path, given.settings)
    decides = [sha256_of(path), dict(given.settings), given.spec.to_json() if given.spec else ""]
    return TorchSource(
        title=f"{describe(checkpoint.config)}, {checkpoint.config.classes} classes ({title or path.name})",
        identity=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        build=partial(network, checkpoint, given.spec),
        axes=frozenset({"batch", "height", "width"}),
    )


def load_vit(path: Path, size: Size | None = None) -> ViT:
    """Read a checkpoint and build its model for images of (height, width) `size`; None = the trained size."""
    return build(read_checkpoint(path), size)


def read_checkpoint(path: Path, settings: Mapping[str, str] | None = None) -> Checkpoint:
    """Read an `.npz`; `settings` are those of `open_vit`. Raises as `open_vit`."""
    settings = settings or {}
    names = npz_names(path)
    naming = naming_of(path, names)
    stored = read_npz(path, parameters_of(naming, names))
    arrays = {name: without_group_norm_axes(name, array) for name, array in stored.items()}
    config = infer_config(path, arrays, naming)
    wanted = tuple(entries(config, naming))
    _check_shapes(path, arrays, naming, config, wanted)
    class_token, grid = _position(path, arrays, naming, config, settings)
    rows, columns = (side * config.stride for side in grid.shape[2:])
    return Checkpoint(
        replace(config, size=(rows, columns)),
        {entry.target: torch.from_numpy(entry.tensor(arrays)) for entry in wanted},
        class_token,
        grid,
    )


def build(checkpoint: Checkpoint, size: Size | None = None, *, dynamic_size: bool = False) -> ViT:
    """Make the model, in evaluation mode, sharing the checkpoint's tensors.

    Args:
        size: image (height, width) in pixels; None = the trained size. The position embedding is resized to it.
        dynamic_size: take any multiple of the patch; the position embedding is then resized in the forward pass.

    Raises:
        UsageError: `size` is less than one patch, or not a multiple of it where it is dynamic.
    """
    trained = checkpoint.config
    config = replace(trained, size=size or trained.size)
    stride = config.stride
    if not min(config.grid) or (dynamic_size and any(side % stride for side in config.size)):
        height, width = config.size
        raise UsageError(
            f"--size {height}x{width}: {describe(config)} cuts images into patches of {stride} pixels",
            expected=f"multiples of {stride}" if dynamic_size else f"at least {stride} pixels on each side",
        )
    if dynamic_size:
        # Built at the trained size: its grid is resized from there, and a stem pads all multiples of the patch alike.
        config = replace(trained, dynamic_size=True)
        position = {"position.grid": checkpoint.grid}
        if checkpoint.class_token is not None:
            position["position.class_token"] = checkpoint.class_token
    else:
        position = {"position.tokens": _tokens(checkpoint, config.grid)}
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = ViT(config)
    model.load_state_dict({**checkpoint.state, **position}, assign=True)
    return model.eval()


def checkpoint_of(model: ViT) -> Checkpoint:
    """Return what `build` makes `model` of; the model has one fixed size."""
    state = model.state_dict()
    tokens = state.pop("position.tokens")
    own = int(model.config.pooling is Pooling.TOKEN)
    grid = tokens[:, own:].transpose(1, 2).reshape(1, model.config.hidden, *model.config.grid)
    return Checkpoint(model.config, state, tokens[:, :1] if own else None, grid)


def network(checkpoint: Checkpoint, spec: ModelSpec | None, options: ExportOptions) -> Network:
    """Make what `TorchSource` exports, at the size of the options, else of the spec, else of the checkpoint."""
    trained = checkpoint.config.size
    size = options.size or (spec.preprocessing.size if spec else trained)
    model = build(checkpoint, size, dynamic_size=options.dynamic_size)
    spec = spec or default_spec(size)
    spec = replace(spec, preprocessing=replace(spec.preprocessing, size=size))
    height, width = size
    if options.dynamic_size and height == width:  # so that the tracer does not take them for one dimension
        width += checkpoint.config.stride
    return Network(
        model,
        {spec.image_input: torch.zeros(2, 3, height, width)},
        (spec.outputs["logits"],),
        spec,
        {spec.image_input: {0: "batch", 2: "height", 3: "width"}},
        checkpoint.config.stride,
    )


def describe(config: ViTConfig) -> str:
    """Return the usual name of an architecture, such as `ViT-B/16` or `R50+ViT-B/16`, else its sizes."""
    known = {(192, 12): "Ti", (384, 12): "S", (512, 12): "M", (768, 12): "B", (1024, 24): "L", (1152, 27): "So400m",
             (1280, 32): "H", (1408, 40): "g", (1664, 48): "G"}  # fmt: skip
    sizes = f"ViT of {config.layers} layers, {config.hidden} wide, patch {config.stride}"
    letter = known.get((config.hidden, config.layers))
    # The published names count a stem without stages as halving the image once, though it does so twice.
    patch = 2 * config.patch if config.stem and not config.stem.depths else config.stride
    name = (f"ViT-{letter}/{patch}" if letter else sizes) + (", pruned" if config.uneven else "")
    if config.stem is None:
        return name
    # Three convolutions a unit, and by custom the root and the head count as one layer each.
    depth = 3 * sum(config.stem.depths) + 2 if config.stem.depths else ""
    return f"R{depth}+{name}"


def default_spec(size: Size) -> ModelSpec:
    """The evaluation of the original: stretched to `size` (height, width) in pixels, brought to −1..1."""
    half = (0.5, 0.5, 0.5)
    return ModelSpec(
        Task.CLASSIFICATION,
        Decode.LOGITS,
        "images",
        {"logits": "logits"},
        Preprocessing(size, mean=half, std=half),
    )


def check_spec(path: Path, spec: ModelSpec | None) -> None:
    """Raise SpecError for a spec that is not that of such a classifier; `path` is for the text."""
    if spec is None:
        return
    if spec.task is not Task.CLASSIFICATION:
        raise SpecError(
            f"the spec says {spec.task.value}, and {path} is a ViT that classifies",
            expected='task = "classification", decode = "logits"',
        )
    if spec.preprocessing.layout != "NCHW" or spec.size_input or spec.valid_size_input:
        raise SpecError(
            f"the spec asks for layout {spec.preprocessing.layout}, or for an input with the size of the image",
            expected=f'preprocessing.layout = "NCHW" and no size_input: {path} is exported with one image input',
        )


def _check_shapes(
    path: Path, arrays: Arrays, naming: Naming, config: ViTConfig, wanted: Iterable[Entry]
) -> None:
    shapes = {entry.name: entry.shape for entry in wanted}
    if config.pooling is Pooling.TOKEN:
        shapes[f"{naming.prefix}cls"] = (1, 1, config.hidden)
    groups = {
        "missing": [f"{name} {shape}" for name, shape in shapes.items() if name not in arrays],
        "not understood": [
            f"{name} {array.shape}"
            for name, array in arrays.items()
            if name not in {*shapes, naming.position}
        ],
        "of another shape": [
            f"{name} {arrays[name].shape}, expected {shape}"
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    wrong = [f"  {len(found)} {what}: {_shortened(found)}" for what, found in groups.items() if found]
    if wrong:
        raise ModelError(
            "\n".join([f"{path} does not fit {describe(config)}", *wrong]),
            expected=f"the arrays of {config}",
            cause="a variant of the model that is not known here, or a file that was changed",
        )


def _shortened(found: list[str]) -> str:
    left = len(found) - _LISTED
    return "; ".join(found[:_LISTED]) + (f"; and {left} more" if left > 0 else "")


def _position(
    path: Path, arrays: Arrays, naming: Naming, config: ViTConfig, settings: Mapping[str, str]
) -> tuple[Tensor | None, Tensor]:
    """Return class token (its position added) and grid of a checkpoint, see `Checkpoint`."""
    kind = settings.get("position", "")
    if kind not in ("", "sine") or (kind and naming.position):
        raise UsageError(
            f"--set position={kind}",
            expected="sine, and only for a checkpoint without a position embedding",
        )
    token = torch.from_numpy(arrays[f"{naming.prefix}cls"]) if config.pooling is Pooling.TOKEN else None
    if not naming.position:
        if not kind:
            raise ModelError(
                f"{path} has no position embedding",
                expected="pos_embedding (1, tokens, hidden)",
                cause="big_vision can train with fixed sines and cosines instead",
                fix="if this is such a model: --set position=sine, and grid=ROWSxCOLUMNS if not trained at 224 pixels",
            )
        side = _SINE_SIZE // config.stride
        return token, sine_position(_given_grid(settings) or (side, side), config.hidden)
    stored = arrays[naming.position]
    if stored.ndim != 3 or stored.shape[0] != 1 or stored.shape[2] != config.hidden:
        raise ModelError(
            f"{naming.position!r} in {path} has shape {stored.shape}",
            expected=f"(1, tokens, {config.hidden})",
        )
    rows, columns, own = _grid(path, stored.shape[1], token is not None, settings)
    positions = torch.from_numpy(stored)
    if token is not None and own:
        token = token + positions[:, :1]
    grid = positions[:, own:].transpose(1, 2).reshape(1, config.hidden, rows, columns)
    return token, grid


def _grid(path: Path, tokens: int, has_token: bool, settings: Mapping[str, str]) -> tuple[int, int, int]:
    """Return rows, columns, and whether (1 or 0) the class token has a position of its own.

    It has in the original, where it is put in front first, and has not in big_vision.
    """
    given = _given_grid(settings)
    for own in (1, 0) if has_token else (0,):
        side = isqrt(tokens - own)
        rows, columns = given or (side, side)
        if rows * columns == tokens - own > 0:
            return rows, columns, own
    raise ModelError(
        f"{path} has {tokens} position embeddings, which are no square grid of patches"
        if given is None
        else f"{path} has {tokens} position embeddings, and grid={settings['grid']} was given",
        expected="rows × columns" + (", or one more for the class token" if has_token else ""),
        fix="--set grid=ROWSxCOLUMNS, the patches along height and width at which it was trained",
    )


def _given_grid(settings: Mapping[str, str]) -> Size | None:
    text = settings.get("grid")
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise UsageError(f"--set grid={text}", expected="ROWSxCOLUMNS, such as 14x14")
    return int(match.group(1)), int(match.group(2))


def _tokens(checkpoint: Checkpoint, size: Size) -> Tensor:
    """Return what is added to the tokens, (1, tokens, hidden), for a grid of `size`."""
    grid = checkpoint.grid
    if tuple(grid.shape[2:]) != size:
        grid = resized(grid.double(), size).float()
    patches = grid.flatten(2).transpose(1, 2)
    return patches if checkpoint.class_token is None else torch.cat([checkpoint.class_token, patches], dim=1)
