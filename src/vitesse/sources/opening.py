"""What the user types → a source.

model.onnx                      an ONNX file: no source to export, taken as it is
detr.pth  .pt  .bin  .safetensors     a checkpoint of facebookresearch/detr
ViT-B_16.npz                    a checkpoint of google-research/vision_transformer
FOLDER                          what `save_trainable` wrote (pruned, distilled), known by its config.json
hf:NAME  hf:FOLDER              transformers, by hub name or local folder; FOLDER alone, too
timm:NAME                       timm
flax:PACKAGE.MODULE:FUNCTION    the user's own JAX model
detr_resnet50                   a published model by name, see sources/named.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from vitesse.errors import ModelError, UsageError, missing_extra
from vitesse.progress import Progress
from vitesse.sources.download import download
from vitesse.sources.named import NAMED, Named
from vitesse.sources.source import Given, Source

# Prefix or suffix → (module, function); a string each, so that reading a .npz needs no transformers.
_PREFIXES: Mapping[str, tuple[str, str]] = {
    "hf": ("vitesse.sources.huggingface.loading", "open_huggingface"),
    "timm": ("vitesse.sources.timm_models", "open_timm"),
    "flax": ("vitesse.sources.jax.function", "open_flax"),
}
DETR = ("vitesse.sources.detr_checkpoint", "open_detr")
VIT = ("vitesse.sources.vit_checkpoint", "open_vit")
DETR_SUFFIXES, VIT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors"), (".npz",)
SAVED = ("vitesse.sources.trainable", "open_saved")
_SUFFIXES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(VIT_SUFFIXES, VIT),
    **dict.fromkeys(DETR_SUFFIXES, DETR),
}
FORMS = (
    "an .onnx file, a DETR checkpoint (.pth, .safetensors), a ViT checkpoint (.npz), hf:NAME or hf:FOLDER, "
    f"timm:NAME, flax:PACKAGE.MODULE:FUNCTION, or one of: {', '.join(NAMED)}"
)


def is_onnx(text: str | Path) -> bool:
    """Whether the text means an ONNX file: it is a path, and not one of a kind that has to be exported."""
    path = Path(text)
    if _prefix(str(text)) or str(text) in NAMED or path.suffix in _SUFFIXES:
        return False
    return path.suffix == ".onnx" or (path.exists() and not (path / "config.json").is_file())


def is_saved(folder: Path) -> bool:
    """Whether the folder holds a model of ours, and not one of transformers: its config.json says "vitesse"."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "vitesse" in config


def open_source(
    text: str | Path,
    given: Given | None = None,
    *,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> Source:
    """Open a model that is not yet ONNX.

    Args:
        text: as the user typed it.
        weights: a file to take instead of downloading, for a name or `timm:`.

    Raises:
        UsageError: the text means nothing, or an option does not belong to this kind of source.
        ModelError: the weights cannot be had, read or understood.
        MissingExtra: the package for this kind of source is not installed.
    """
    given = given or Given()
    prefix = _prefix(str(text))
    if prefix:
        rest = str(text).partition(":")[2]
        extra: dict[str, Any] = {"weights": weights} if prefix == "timm" else {}
        if weights is not None and not extra:
            raise _no_weights(text, weights)
        return _opened(_PREFIXES[prefix], rest, given, **extra)
    if str(text) in NAMED:
        return _named(str(text), NAMED[str(text)], given, weights, progress)
    if weights is not None:
        raise _no_weights(text, weights)
    path = Path(text)
    if (path / "config.json").is_file():
        if is_saved(path):
            return _opened(SAVED, path, given)
        return _opened(_PREFIXES["hf"], str(path), given)
    if path.suffix in _SUFFIXES:
        if not path.is_file():
            raise ModelError(f"no model at {path}", expected="a file", cause="a typing error in the path")
        return _opened(_SUFFIXES[path.suffix], path, given)
    raise _unknown(str(text))


def _opened(opener: tuple[str, str], *arguments: Any, **options: Any) -> Source:
    module, function = opener
    try:
        found: Source = getattr(import_module(module), function)(*arguments, **options)
    except ImportError as error:
        raise missing_extra(error) from error
    return found


def _named(name: str, named: Named, given: Given, weights: Path | None, progress: Progress | None) -> Source:
    if weights is None:
        weights = download(named.remote, progress=progress)
    elif not weights.is_file():
        raise ModelError(f"no weights at {weights}", expected=f"the file {named.remote.file_name}")
    settings = {**named.settings, **given.settings}
    opener = VIT if named.remote.file_name.endswith(".npz") else DETR
    return _opened(opener, weights, Given(given.spec, settings), title=name)


def _prefix(text: str) -> str:
    prefix, colon, _ = text.partition(":")
    return prefix if colon and prefix in _PREFIXES else ""


def _no_weights(text: str | Path, weights: Path) -> UsageError:
    return UsageError(
        f"--weights {weights} beside {text}",
        expected="--weights with the name of a published model or timm:NAME",
        fix=f"give {weights} itself as the model",
    )


def _unknown(text: str) -> UsageError:
    close = get_close_matches(text, NAMED, n=1)
    return UsageError(
        f"no model {text!r}: there is no such file, and no published model of that name",
        expected=FORMS,
        cause="a typing error in the path or name",
        fix=f"perhaps {close[0]}" if close else "",
    )
