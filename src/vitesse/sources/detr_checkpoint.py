"""A checkpoint of facebookresearch/detr (`.pth`, `.safetensors`) → a DETR, ready to be exported.

file ──read_weights──▶ tensors ──infer_config──▶ sizes ──▶ DETR, its keys unchanged ──network──▶ TorchSource
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vitesse.errors import ModelError, SpecError, UsageError
from vitesse.export.torch_onnx import Network, TorchSource
from vitesse.sources.detr import BODY, DETR, DETRConfig, fold_batch_norm
from vitesse.sources.detr_parts import uneven_parts
from vitesse.sources.preset import read_preset
from vitesse.sources.source import ExportOptions, Given
from vitesse.sources.torch_weights import Weights, read_weights
from vitesse.spec import Decode, ModelSpec, Resize, Task, spec_from_mapping
from vitesse.storage import sha256_of

# DETR is evaluated with the short side at 800 and the long one at most 1333; 800×1066 is that for a 4:3 photo.
_FIXED_SIZE, _OPEN_SIZE = (800, 1066), (800, 1333)
_LEAST_SIDE = 32
_DEFAULT_HEADS = 8
_LISTED = 8
_VALID_SIZES = "sizes"
_DEPTHS: Mapping[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "ResNet-18",
    (False, (3, 4, 6, 3)): "ResNet-34",
    (True, (3, 4, 6, 3)): "ResNet-50",
    (True, (3, 4, 23, 3)): "ResNet-101",
    (True, (3, 8, 36, 3)): "ResNet-152",
}
_ORIGINAL = "the state dict of facebookresearch/detr"
# A key that only another kind of model has → what it is, and what to do.
_OTHER_MODELS = (
    (
        r"class_labels_classifier\.|^model\.(encoder|decoder)\.layers\.",
        "a detector of transformers",
        "give the folder that it was saved to, with its config.json: hf:FOLDER",
    ),
    (r"\.sampling_offsets\.", "a Deformable DETR", "use it through transformers: hf:NAME or hf:FOLDER"),
    (r"\.ca_qcontent_proj\.", "a Conditional DETR", "use it through transformers: hf:NAME or hf:FOLDER"),
    (
        r"^backbone\.res_layers\.|dec_score_head",
        "an RT-DETR or one of its kind",
        "use it through transformers, hf:NAME or hf:FOLDER, or export it to ONNX with its own program",
    ),
    (r"^(layer1\.0\.conv1|fc)\.weight$", "a plain ResNet", "give a detector"),
    (r"^blocks\.\d+\.attn\.qkv\.", "a ViT of timm", "give timm:NAME --weights FILE"),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: sizes, tensors under the original's names, and what is worth saying about them."""

    config: DETRConfig
    state: Mapping[str, Tensor]
    remarks: tuple[str, ...] = ()


def open_detr(path: Path, given: Given | None = None, *, title: str = "") -> TorchSource:
    """Open a checkpoint of facebookresearch/detr, of any width and depth, as a source.

    Fixed, the graph takes pictures stretched to one size. With height and width open it takes pictures padded to the
    largest of the batch, and a second input `sizes` with the (height, width) that each covers; so it does at a fixed
    size where the spec names a `valid_size_input`. Labels are those of COCO where there are 91 classes.

    Args:
        given: settings are `heads=8`, the number of attention heads, and `dilation=true`, for DC5. Neither shows in
            the weights; they are taken from the options that training saved, DC5 from the file's name.
        title: the name by which the user asked for it.

    Raises:
        ModelError: the file cannot be read, is another model, or keys are missing, not understood or of another shape.
        UsageError: an unknown setting, or a wrong value.
        SpecError: the spec is not that of such a detector.
    """
    given = given or Given()
    given.refuse_unknown("a DETR checkpoint", "heads", "dilation")
    check_spec(path, given.spec)
    checkpoint = read_checkpoint(path, given.settings)
    what = [describe(checkpoint.config), f"{checkpoint.config.logits - 1} classes", *checkpoint.remarks]
    decides = [sha256_of(path), path.name, dict(given.settings), given.spec.to_json() if given.spec else ""]
    return TorchSource(
        title=f"{', '.join(what)} ({title or path.name})",
        identity=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        build=partial(network, build(checkpoint), given.spec),
        axes=frozenset({"batch", "height", "width"}),
    )


def load_detr(path: Path, settings: Mapping[str, str] | None = None) -> DETR:
    """Read a checkpoint and build its model, in evaluation mode. Arguments and errors as in `open_detr`."""
    return build(read_checkpoint(path, settings))


def read_checkpoint(path: Path, settings: Mapping[str, str] | None = None) -> Checkpoint:
    """Read a checkpoint and infer its sizes; every key is accounted for. Arguments and errors as in `open_detr`."""
    weights, settings = read_weights(path), settings or {}
    state, remarks = _detection_part(weights)
    _refuse_other_models(path, state)
    config = infer_config(
        path,
        state,
        heads=_heads(settings, weights.args),
        dilation=_dilation(settings, weights.args, path),
    )
    _check_keys(path, config, state)
    return Checkpoint(config, state, remarks)


def build(checkpoint: Checkpoint) -> DETR:
    """Make the model, in evaluation mode, sharing the checkpoint's tensors."""
    model = DETR(checkpoint.config)
    model.load_state_dict(checkpoint.state, assign=True)
    return model.eval().requires_grad_(False)


def describe(config: DETRConfig) -> str:
    """Return for example `DETR, ResNet-50 DC5`."""
    usual = config.stem == 64 and config.groups == 1 and config.widths == (64, 128, 256, 512)
    depths = "+".join(map(str, config.depths))
    backbone = _DEPTHS.get((config.bottleneck, config.depths), "") if usual else ""
    marks = (" DC5" if config.dilation else "") + (", pruned" if config.uneven else "")
    return f"DETR, {backbone or f'ResNet of {depths} blocks'}{marks}"


def infer_config(path: Path, state: Mapping[str, Tensor], *, heads: int, dilation: bool) -> DETRConfig:
    """Read widths and depths off the shapes.

    Raises:
        ModelError: a key that tells a size is missing or has too few dimensions; `path` is for the text.
        UsageError: heads do not divide the width, or DC5 with basic blocks.
    """

    def count(pattern: str) -> int:
        return len({found[1] for key in state if (found := re.match(pattern, key))})

    def side(name: str, axis: int = 0) -> int:
        if name not in state or state[name].ndim <= axis:
            raise ModelError(
                f"{path} has no {name!r}, or not as a weight; it has {_shortened(state)}", expected=_ORIGINAL
            )
        return state[name].shape[axis]

    stages = [f"{BODY}layer{stage}." for stage in range(1, 5)]
    bottleneck = f"{stages[0]}0.conv3.weight" in state
    strided, last = ("conv2", "conv3") if bottleneck else ("conv1", "conv2")
    widths = tuple(side(f"{stage}0.{strided}.weight") for stage in stages)
    rows = "backbone.1.row_embed.weight"
    config = DETRConfig(
        stem=side(f"{BODY}conv1.weight"),
        widths=widths,
        channels=tuple(side(f"{stage}0.{last}.weight") for stage in stages),
        depths=tuple(count(rf"{re.escape(stage)}(\d+)\.") for stage in stages),
        hidden=side("query_embed.weight", 1),
        heads=heads,
        feedforward=side("transformer.decoder.layers.0.linear1.weight"),
        encoder_layers=count(r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=count(r"transformer\.decoder\.layers\.(\d+)\."),
        queries=side("query_embed.weight"),
        logits=side("class_embed.weight"),
        bottleneck=bottleneck,
        groups=side(f"{stages[0]}0.conv1.weight") // max(1, side(f"{stages[0]}0.conv2.weight", 1))
        if bottleneck
        else 1,
        dilation=dilation,
        pre_norm="transformer.encoder.norm.weight" in state,
        learned_cells=side(rows) if rows in state else 0,
    )
    _check_config(path, config)
    return replace(config, uneven=uneven_parts(config, state))


def network(model: DETR, given: ModelSpec | None, options: ExportOptions) -> Network:
    """Make the form of the model that the options ask for; see `open_detr`. `model` is left as it is."""
    spec = export_spec(model.config, given, options)
    size = options.size or spec.preprocessing.size
    module = fold_batch_norm(model)
    module.keep_aux = options.keep_aux
    outputs = [spec.outputs["logits"], spec.outputs["boxes"]]
    if options.keep_aux:
        if model.config.decoder_layers == 1:
            raise UsageError(
                "--keep-aux: this DETR has one decoder layer", expected="a decoder of several layers"
            )
        outputs += ["aux_logits", "aux_boxes"]
    axes = {spec.image_input: {0: "batch", 2: "height", 3: "width"}}
    if options.dynamic_size and size[0] == size[1]:
        size = (size[0], size[1] + model.config.stride)  # the tracer would take equal sides for one dimension
    inputs = {spec.image_input: torch.zeros(2, 3, *size)}
    if spec.valid_size_input is None:
        module.fix_size(size)
    else:
        inputs[spec.valid_size_input] = torch.tensor([size, size])
        axes[spec.valid_size_input] = {0: "batch"}
    return Network(module, inputs, tuple(outputs), spec, axes)


def export_spec(config: DETRConfig, given: ModelSpec | None, options: ExportOptions) -> ModelSpec:
    """Return `given`, else the original's evaluation, at the size of the options.

    Raises:
        UsageError: the size is too small, or larger than a learned position embedding.
        SpecError: one size for all pictures, and the spec gives every picture another.
    """
    if options.size is not None and min(options.size) < _LEAST_SIDE:
        raise UsageError(
            f"--size {options.size[0]}x{options.size[1]}", expected=f"at least {_LEAST_SIDE} pixels a side"
        )
    spec = given or _default_spec(config, options)
    rules = spec.preprocessing
    size = rules.size if options.dynamic_size else options.size or rules.size
    if config.learned_cells and max(size) > config.learned_cells * config.stride:
        raise UsageError(
            f"images of {size[0]}×{size[1]}: the learned position embedding has {config.learned_cells} cells a side",
            expected=f"at most {config.learned_cells * config.stride} pixels a side",
            fix="a smaller --size, or with open height and width a smaller preprocessing.size in the spec",
        )
    if options.dynamic_size:
        return replace(spec, valid_size_input=spec.valid_size_input or _VALID_SIZES)
    if rules.resize is Resize.SHORTEST:
        raise SpecError(
            'the spec says resize = "shortest", which makes every picture of another size, and the graph takes one',
            expected='resize = "stretch" or "letterbox" for a graph of fixed size',
            fix="--dynamic batch,height,width, or another resize in the spec",
        )
    return replace(spec, preprocessing=replace(rules, size=size))


def _default_spec(config: DETRConfig, options: ExportOptions) -> ModelSpec:
    """The evaluation of the original; labels are known for COCO's 91 ids only."""
    preset = read_preset("detr")
    labels, variant = preset["labels"], preset["variant"][0]
    rules = dict(variant["preprocessing"])
    rules |= (
        {"size": _OPEN_SIZE, "resize": Resize.SHORTEST} if options.dynamic_size else {"size": _FIXED_SIZE}
    )
    return spec_from_mapping(
        {
            "task": variant["task"],
            "decode": variant["decode"],
            "image_input": "images",
            "outputs": {"logits": "logits", "boxes": "boxes"},
            "preprocessing": rules,
            "labels": labels if config.logits == len(labels) + 1 else (),
        }
    )


def check_spec(path: Path, spec: ModelSpec | None) -> None:
    """Raise SpecError for a spec that is not that of such a detector; `path` is for the text."""
    if spec is None:
        return
    if spec.task is not Task.DETECTION or spec.decode is Decode.POSTPROCESSED:
        raise SpecError(
            f"the spec says task {spec.task.value}, decode {spec.decode.value}, and {path} is a DETR, which gives "
            "logits and boxes",
            expected='task = "detection", decode = "detr_softmax"',
        )
    if spec.preprocessing.layout != "NCHW" or spec.size_input:
        raise SpecError(
            f"the spec asks for layout {spec.preprocessing.layout}, size_input {spec.size_input!r}",
            expected='preprocessing.layout = "NCHW" and no size_input: the boxes are relative to the image',
        )


def _setting(
    settings: Mapping[str, str], name: str, expected: str, values: Callable[[str], int]
) -> int | None:
    """Return the value of `--set NAME=…`, None where it is not given; `values` raises KeyError or ValueError."""
    if name not in settings:
        return None
    try:
        return values(settings[name])
    except (KeyError, ValueError) as error:
        raise UsageError(f"--set {name}={settings[name]}", expected=expected) from error


def _heads(settings: Mapping[str, str], args: Mapping[str, object]) -> int:
    heads = _setting(settings, "heads", "a whole number, such as 8", int)
    trained = args.get("nheads")
    return heads if heads is not None else trained if isinstance(trained, int) else _DEFAULT_HEADS


def _dilation(settings: Mapping[str, str], args: Mapping[str, object], path: Path) -> bool:
    dilation = _setting(settings, "dilation", "true or false", {"true": 1, "false": 0}.__getitem__)
    if dilation is not None:
        return bool(dilation)
    return bool(args["dilation"]) if "dilation" in args else "dc5" in path.name.lower()


def _check_config(path: Path, config: DETRConfig) -> None:
    if config.heads < 1 or config.hidden % config.heads or config.hidden % 4:
        raise UsageError(
            f"{config.heads} attention heads for {path}, whose hidden size is {config.hidden}",
            expected="heads that divide the hidden size, which is a multiple of 4",
            cause="the number of heads is not in the weights, and the usual 8 was assumed",
            fix="give the number the model was trained with: --set heads=N",
        )
    if config.dilation and not config.bottleneck:
        raise UsageError(
            f"DC5 for {path}, a ResNet of basic blocks",
            expected="DC5 with ResNet-50 and larger only",
            fix="--set dilation=false",
        )
    if config.groups < 1 or any(width % config.groups for width in config.widths):
        raise ModelError(
            f"{path}: 3×3 convolutions of {config.widths} channels in {config.groups} groups",
            expected=_ORIGINAL,
        )


def _detection_part(weights: Weights) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the keys of the detector itself, and remarks on where they come from."""
    state, remarks = dict(weights.tensors), ["averaged weights"] if weights.averaged else []
    # `detr.`: DETRsegm of the original, which adds masks to a detector; `model.`: Lightning and its like.
    for prefix in ("detr.", "model."):
        if f"{prefix}class_embed.weight" in state:
            inside = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
            if prefix == "detr.":
                remarks.append("detection part of a panoptic checkpoint")
            state = inside
    # The original, too, drops the counters of BatchNorm, which torchvision's weights have.
    return {k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")}, tuple(remarks)


def _refuse_other_models(path: Path, state: Mapping[str, Tensor]) -> None:
    for pattern, what, fix in _OTHER_MODELS:
        key = next((key for key in state if re.search(pattern, key)), None)
        if key is not None:
            raise ModelError(f"{path} is {what}: it has {key!r}", expected=_ORIGINAL, fix=fix)


def _check_keys(path: Path, config: DETRConfig, state: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in DETR(config).state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing, extra = wanted.keys() - shapes.keys(), shapes.keys() - wanted.keys()
    misshapen = [
        f"{name} {shapes[name]}, expected {shape}"
        for name, shape in wanted.items()
        if shapes.get(name, shape) != shape
    ]
    wrong = [
        f"  {len(keys)} {what}: {_shortened(shown)}"
        for what, keys, shown in (
            ("missing", missing, _grouped(missing)),
            ("not understood", extra, _grouped(extra)),
            ("of another shape", misshapen, misshapen),
        )
        if keys
    ]
    if wrong:
        raise ModelError(
            "\n".join([f"{path} does not fit {describe(config)}", *wrong]),
            expected=_ORIGINAL,
            cause="another model, a changed one, or --set values that do not belong to it",
        )


def _grouped(names: Iterable[str]) -> list[str]:
    """Collect the names of one module: `norm.{bias,weight}`."""
    leaves: dict[str, list[str]] = {}
    for name in sorted(names):
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, []).append(leaf)
    return [
        f"{module}.{found[0]}" if len(found) == 1 else f"{module}.{{{','.join(found)}}}"
        for module, found in leaves.items()
    ]


def _shortened(found: Iterable[str]) -> str:
    names = list(found)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
