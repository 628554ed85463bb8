"""Classifiers of timm: `timm:vit_base_patch16_224.augreg_in21k_ft_in1k`, pretrained or with weights of one's own.

timm builds the model and adapts the weights to it (names of other repositories, position embeddings of another
resolution); the preprocessing is the evaluation transform of its pretrained configuration.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitesse.errors import MissingExtra

try:
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
    from timm.models import get_pretrained_cfg
except RuntimeError as error:  # timm needs torchvision, which fails so beside a torch it was not built for
    raise MissingExtra(
        f"timm cannot be imported: {error}",
        expected="torch and torchvision of one release and one kind (CPU or CUDA)",
        cause="torchvision was installed for another torch",
        fix="pip install --upgrade --force-reinstall torch torchvision",
    ) from error
import torch
from torch import Tensor, nn

from vitesse.errors import ModelError, SpecError, UsageError
from vitesse.export.torch_onnx import Network, TorchSource
from vitesse.sources.source import ExportOptions, Given
from vitesse.sources.torch_weights import read_weights
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

_IMAGE, _LOGITS = "images", "logits"
_CROPS: Mapping[str, Resize] = {"center": Resize.CROP, "squash": Resize.SQUASH}


@dataclass(frozen=True)
class _Recipe:
    """What makes a model: its name, the arguments for timm, its weights, and the number of classes they answer."""

    name: str
    arguments: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    classes: int


def open_timm(name: str, given: Given | None = None, *, weights: Path | None = None) -> TorchSource:
    """Open a classifier of timm.

    Args:
        name: as timm has it, with or without the tag of its weights after a dot.
        given: `settings` are arguments of the model's constructor, such as `depth` or `global_pool`; numbers, tuples,
            True, False and None are read as Python writes them.
        weights: a checkpoint (safetensors, or torch.save without code) instead of the pretrained weights of timm,
            which come from its cache or the hub. Its head says how many classes there are.

    Raises:
        UsageError: timm has no such model, or the model no such setting.
        ModelError: the weights cannot be had or read, or have no head.
        SpecError: images are prepared in a way that a spec cannot say.
    """
    given = given or Given()
    _check_name(name)
    arguments = {key: _value(text) for key, text in given.settings.items()}
    if "img_size" in arguments:
        raise UsageError("--set img_size", expected="the size of the images as --size HEIGHTxWIDTH")
    found = read_weights(weights).tensors if weights else _pretrained(name, arguments)
    recipe = _Recipe(name, arguments, found, _classes(name, found))
    spec = given.spec or _spec(recipe)
    if spec.decode is not Decode.LOGITS:
        raise SpecError(
            f"the spec decodes by {spec.decode.value!r}", expected="'logits', which a classifier gives"
        )

    def build(options: ExportOptions) -> Network:
        return _network(recipe, spec, options)

    title = f"{name}, {recipe.classes} classes (timm{f', {weights.name}' if weights else ''})"
    return TorchSource(title, _identity(recipe, spec), build)


def _check_name(name: str) -> None:
    known = [*timm.list_models(), *timm.list_models(include_tags=True)]
    if name in known:
        return
    close = get_close_matches(name, known, n=3)
    raise UsageError(
        f"timm {timm.__version__} has no model {name!r}",
        expected="a name of timm.list_pretrained(), such as vit_base_patch16_224.augreg_in21k_ft_in1k",
        cause="a typing error, or a model of a newer timm",
        fix=f"perhaps {' or '.join(close)}" if close else "",
    )


def _value(text: str) -> Any:
    """Read a setting as Python would; what is no literal is a text (`global_pool=avg`)."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _pretrained(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights timm publishes for the model, from its cache or the hub."""
    try:
        return dict(timm.create_model(name, pretrained=True, **arguments).state_dict())
    except TypeError as error:
        raise _no_such_setting(name, arguments, error) from error
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(
            f"no pretrained weights for timm:{name}: {reason}",
            expected="weights in the cache of huggingface_hub, or a connection to the hub; tried in this order",
            cause="the hub cannot be reached, or timm publishes no weights under this tag",
            fix=f"fetch the weights on a machine with a connection (`hf download timm/{name}`), "
            "then give --weights model.safetensors",
        ) from error


def _classes(name: str, weights: Mapping[str, Tensor]) -> int:
    """How many classes the head of the weights tells apart."""
    heads = get_pretrained_cfg(name).classifier
    first = heads if isinstance(heads, str) or heads is None else heads[0]
    weight = weights.get(f"{first}.weight")
    if weight is None:
        raise ModelError(
            f"the weights for timm:{name} have no head: no tensor {first}.weight",
            expected="weights of a model that was trained to classify",
            cause="the pretrained body alone, which answers with features, or weights of another architecture",
            fix="choose a tag that was fine-tuned, such as …_in1k",
        )
    return int(weight.shape[0])


def _create(recipe: _Recipe, size: tuple[int, int] | None) -> nn.Module:
    """Build the model and load its weights; position embeddings are resampled to `size` (height, width)."""
    overlay = {"state_dict": dict(recipe.weights), "num_classes": recipe.classes, "label_offset": 0}
    arguments = {**recipe.arguments, **({} if size is None else {"img_size": size})}
    try:
        model: nn.Module = timm.create_model(
            recipe.name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            pretrained_strict=True,
            num_classes=recipe.classes,
            **arguments,
        )
    except TypeError as error:
        raise _no_such_setting(recipe.name, arguments, error) from error
    except (AssertionError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"the weights do not fit timm:{recipe.name}: {' '.join(str(error).split())[:600]}",
            expected="weights of this architecture, of this depth, width and patch size",
            cause="weights of another model, or a model built with other arguments",
            fix="give what differs with --set, for example --set depth=6",
        ) from error
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            # torch 2.13 cannot decompose its own attention with a bias (BEiT, Swin); written out, all are fused again
            module.fused_attn = False
    return model.eval()


def _no_such_setting(name: str, arguments: Mapping[str, Any], error: Exception) -> UsageError:
    given = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return UsageError(
        f"timm:{name} cannot be built with {given}: {error}",
        expected="arguments of the model's constructor in timm, or none",
    )


def _network(recipe: _Recipe, spec: ModelSpec, options: ExportOptions) -> Network:
    """Make the model ready to be traced as the options ask; see `TorchSource.build`."""
    if options.keep_aux:
        raise UsageError(f"--keep-aux: timm:{recipe.name} has no auxiliary outputs", expected="a DETR")
    native = spec.preprocessing.size
    size = options.size or native
    spec = replace(spec, preprocessing=replace(spec.preprocessing, size=size))
    trained = tuple(get_pretrained_cfg(recipe.name).input_size[1:])
    model = _create(recipe, None if size == trained else size)
    inputs = {spec.image_input: torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))}
    axes = {spec.image_input: {0: "batch"}}
    return Network(model, inputs, (spec.outputs["logits"],), spec, axes)


def _spec(recipe: _Recipe) -> ModelSpec:
    config = get_pretrained_cfg(recipe.name)
    return ModelSpec(
        task=Task.CLASSIFICATION,
        decode=Decode.LOGITS,
        image_input=_IMAGE,
        outputs={"logits": _LOGITS},
        preprocessing=preprocessing_of(resolve_data_config(pretrained_cfg=config.to_dict())),
        labels=_labels(recipe.classes, config.num_classes),
    )


def preprocessing_of(data: Mapping[str, Any]) -> Preprocessing:
    """Read timm's data configuration as `timm.data.create_transform` does for evaluation.

    Args:
        data: `input_size` (3, height, width), `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`, as
            `timm.data.resolve_model_data_config` gives them.

    Raises:
        SpecError: crop mode "border", which fills up with the mean colour on all sides.
    """
    mode = data["crop_mode"]
    if mode not in _CROPS:
        raise SpecError(
            f"timm's crop mode {mode!r} cannot be said in a spec",
            expected=f"one of: {', '.join(_CROPS)}",
            fix="say how images are prepared with --spec spec.toml; see docs/spec.md",
        )
    _, height, width = data["input_size"]
    return Preprocessing(
        size=(int(height), int(width)),
        resize=_CROPS[mode],
        resample=data["interpolation"],
        mean=_channels(data["mean"]),
        std=_channels(data["std"]),
        crop_ratio=float(data["crop_pct"]),
    )


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _labels(classes: int, published: int) -> tuple[str, ...]:
    """Class names of ImageNet, for weights with as many classes as the published ones; else unknown."""
    subset = infer_imagenet_subset({"num_classes": classes}) if classes == published else None
    return () if subset is None else tuple(ImageNetInfo(subset).label_descriptions())


def _identity(recipe: _Recipe, spec: ModelSpec) -> str:
    """Hash (sha256) of the name, the arguments, the spec and every tensor."""
    total = hashlib.sha256(f"{recipe.name} {sorted(recipe.arguments.items())} {spec.to_json()}".encode())
    for name, tensor in sorted(recipe.weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
