"""A network of ours whose weights can change: opened for training, and kept in a folder that every command takes.

    detr.pth · vit.npz · FOLDER ──open_trainable──▶ Trainable ──(train, prune)──▶ save_trainable ──▶ FOLDER
                                                                                                       │
    vitesse export FOLDER · vitesse optimize FOLDER ◀──TorchSource──open_saved─────────────────────────┘

A folder holds `model.safetensors` and `config.json`. The configuration carries the sizes, because a pruned model's
heads do not show in the shapes, the spec, and the hash of the weights it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from vitesse.errors import ModelError, UsageError
from vitesse.export.torch_onnx import TorchSource
from vitesse.sources import detr_checkpoint, vit_checkpoint
from vitesse.sources.detr import DETR, DETRConfig
from vitesse.sources.opening import DETR_SUFFIXES, VIT_SUFFIXES, is_saved
from vitesse.sources.source import ExportOptions, Given
from vitesse.sources.torch_weights import read_weights
from vitesse.sources.vit import Pooling, ViT, ViTConfig
from vitesse.sources.vit_resnet import StemConfig
from vitesse.spec import ModelSpec, spec_from_mapping
from vitesse.storage import sha256_of, write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_CAN_BE_TRAINED = (
    "a DETR checkpoint (.pth, .pt, .bin, .safetensors), a ViT checkpoint (.npz), or a folder that `vitesse prune` or "
    "`vitesse distill` wrote"
)


@dataclass(frozen=True)
class Trainable:
    """A network and what its images and outputs mean.

    Args:
        kind: "detr" or "vit".
        module: float32, on the CPU, every parameter with gradients; FrozenBatchNorm stays as buffers. It takes images
            (B, 3, H, W) of the spec's size, normalised, on any device it was moved to. A ViT returns logits
            (B, classes); a DETR logits (B, Q, C + 1), boxes (B, Q, 4) cxcywh in 0..1, and those of the decoder layers
            before the last one: (L − 1, B, Q, C + 1), (L − 1, B, Q, 4).
    """

    kind: str
    config: DETRConfig | ViTConfig
    module: nn.Module
    spec: ModelSpec


def open_trainable(text: str | Path, given: Given | None = None) -> Trainable:
    """Open a network for training.

    Args:
        text: a DETR checkpoint, a ViT checkpoint, or a folder of `save_trainable`.
        given: the spec, and the settings of `open_detr` and `open_vit`.

    Raises:
        UsageError: another kind of model, whose weights cannot be trained here; or a wrong setting.
        ModelError: the weights are missing, damaged or of another model.
        SpecError: the spec is not that of such a model, or its images have no one size.
    """
    given, path = given or Given(), Path(text)
    if is_saved(path):
        return _read_folder(path, given)
    if path.suffix in (*DETR_SUFFIXES, *VIT_SUFFIXES) and not path.is_file():
        raise ModelError(f"no model at {path}", expected="a file", cause="a typing error in the path")
    if path.suffix in DETR_SUFFIXES and path.is_file():
        given.refuse_unknown("a DETR checkpoint", "heads", "dilation")
        detr_checkpoint.check_spec(path, given.spec)
        checkpoint = detr_checkpoint.read_checkpoint(path, given.settings)
        return _built(checkpoint.config, checkpoint.state, given.spec)
    if path.suffix in VIT_SUFFIXES and path.is_file():
        given.refuse_unknown("a ViT checkpoint", "grid", "position")
        vit_checkpoint.check_spec(path, given.spec)
        size = given.spec.preprocessing.size if given.spec else None
        model = vit_checkpoint.build(vit_checkpoint.read_checkpoint(path, given.settings), size)
        return _built(model.config, model.state_dict(), given.spec)
    raise UsageError(
        f"{text}: its weights cannot be trained here",
        expected=_CAN_BE_TRAINED,
        cause="an ONNX graph has no gradients, and models of transformers, timm and JAX are trained by their own "
        "programs",
        fix="give the checkpoint that the model was exported from; of a published name, the downloaded file",
    )


def with_weights(
    trainable: Trainable, config: DETRConfig | ViTConfig, state: Mapping[str, Tensor]
) -> Trainable:
    """Return a network of other sizes with a copy of these weights, fed and read as `trainable` is.

    Raises:
        RuntimeError: `state` has not exactly the names and shapes of `config`.
    """
    return _built(config, {name: tensor.detach().clone() for name, tensor in state.items()}, trainable.spec)


def save_trainable(trainable: Trainable, folder: Path) -> Path:
    """Write weights and configuration; `vitesse export FOLDER` and `open_trainable(FOLDER)` read them.

    Each file is replaced as a whole; an interruption between the two is found out by the hash when they are read.

    Returns:
        The folder.

    Raises:
        StorageError: it cannot be written.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in trainable.module.state_dict().items()
    }
    weights = safetensors.torch.save(tensors)
    described = {
        "vitesse": trainable.kind,
        "config": asdict(trainable.config),
        "spec": json.loads(trainable.spec.to_json()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, (json.dumps(described, indent=2) + "\n").encode())
    return folder


def open_saved(folder: Path, given: Given | None = None) -> TorchSource:
    """Open a folder of `save_trainable` as a source to export. Raises as `open_trainable`."""
    trainable = _read_folder(folder, given or Given())
    decides = [sha256_of(folder / WEIGHTS), asdict(trainable.config), trainable.spec.to_json()]
    if isinstance(trainable.config, DETRConfig):
        assert isinstance(trainable.module, DETR)
        what = f"{detr_checkpoint.describe(trainable.config)}, {trainable.config.logits - 1} classes"
        build = partial(detr_checkpoint.network, trainable.module.requires_grad_(False), trainable.spec)
    else:
        assert isinstance(trainable.module, ViT)
        what = f"{vit_checkpoint.describe(trainable.config)}, {trainable.config.classes} classes"
        checkpoint = vit_checkpoint.checkpoint_of(trainable.module)
        build = partial(vit_checkpoint.network, checkpoint, trainable.spec)
    return TorchSource(
        title=f"{what} ({folder.name})",
        identity=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        build=build,
        axes=frozenset({"batch", "height", "width"}),
    )


def _built(config: DETRConfig | ViTConfig, state: Mapping[str, Tensor], given: ModelSpec | None) -> Trainable:
    if isinstance(config, ViTConfig):
        vit = ViT(config)
        vit.load_state_dict(state, assign=True)
        return Trainable("vit", config, _ready(vit), given or vit_checkpoint.default_spec(config.size))
    spec = detr_checkpoint.export_spec(config, given, ExportOptions())
    detr = DETR(config, keep_aux=True)
    detr.load_state_dict(state, assign=True)
    detr.fix_size(spec.preprocessing.size)
    return Trainable("detr", config, _ready(detr), spec)


def _ready(module: nn.Module) -> nn.Module:
    return module.float().eval().requires_grad_(True)


def _read_folder(folder: Path, given: Given) -> Trainable:
    given.refuse_unknown("a folder written by Vitesse")
    path = folder / CONFIG
    described = json.loads(path.read_bytes())
    try:
        config = _READERS[described["vitesse"]](described["config"])
        spec, recorded = spec_from_mapping(described["spec"]), described["weights_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"cannot read {path}: {error!r}",
            expected='"vitesse": "detr" or "vit", with "config", "spec" and "weights_sha256", as they were written',
            cause="the file was edited, or written by another version",
        ) from error
    weights = folder / WEIGHTS
    state = read_weights(weights).tensors
    if sha256_of(weights) != recorded:
        raise ModelError(
            f"{weights} are not the weights that {path} was written for",
            expected=f"sha256 {recorded[:12]}…",
            cause="a run was interrupted while it wrote them, or one of the two files was replaced",
            fix="run the command that made the folder again",
        )
    if given.spec is not None:
        check = detr_checkpoint if isinstance(config, DETRConfig) else vit_checkpoint
        check.check_spec(folder, given.spec)
    try:
        return _built(config, state, given.spec or spec)
    except RuntimeError as error:
        raise ModelError(
            f"the weights in {folder} do not fit its {CONFIG}: {str(error).splitlines()[-1].strip()}",
            expected="the sizes that the weights have",
            cause="the configuration was edited",
        ) from error


def _detr_config(raw: Mapping[str, Any]) -> DETRConfig:
    return DETRConfig(**{name: _tuples(value) for name, value in raw.items()})


def _vit_config(raw: Mapping[str, Any]) -> ViTConfig:
    values = {name: _tuples(value) for name, value in raw.items()}
    stem = raw["stem"] and StemConfig(raw["stem"]["width"], tuple(raw["stem"]["depths"]))
    return ViTConfig(**{**values, "pooling": Pooling(values["pooling"]), "stem": stem})


# By the value of "vitesse" in a config.json; they raise TypeError or KeyError for keys, ValueError for values.
_READERS: Mapping[str, Callable[[Mapping[str, Any]], DETRConfig | ViTConfig]] = {
    "detr": _detr_config,
    "vit": _vit_config,
}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
