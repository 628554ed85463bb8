"""Reading checkpoints of PyTorch: tensors and plain values only, for a pickle that asks for more can run code.

.safetensors  ──safetensors──┐
.pth .pt .bin ──torch.load───┴─▶ unwrapped, prefixes off, float32 ─▶ Weights
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitesse.errors import ModelError
from vitesse.sources.beginnings import PICKLE, ZIP, refuse_other_files

_EXPECTED = "a checkpoint of torch.save or a .safetensors file, holding tensors"
_RESAVE = (
    "in the program the model comes from, save its weights alone: "
    "torch.save({'model': model.state_dict()}, 'weights.pth')"
)
# Where training programs put the weights, in the order of preference: the averaged weights are those they evaluate.
_WRAPPERS = ("model_ema", "ema", "model", "state_dict", "model_state_dict", "module")
# What wrappers for several GPUs and for torch.compile put in front of every name.
_PREFIXES = ("module.", "_orig_mod.")
_AVERAGED = frozenset({"model_ema", "ema"})


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Args:
        tensors: by name; real numbers are float32, whatever the file stores.
        args: the options of the training program, where it saved them (facebookresearch/detr does).
        averaged: whether these are the exponential moving average of the weights, stored beside the weights.
    """

    tensors: Mapping[str, Tensor]
    args: Mapping[str, object] = field(default_factory=dict)
    averaged: bool = False


def read_weights(path: Path) -> Weights:
    """Read a `.safetensors` file or a checkpoint of torch.save, told apart by content.

    The weights are looked for under `model`, `state_dict` and other usual keys (`ema` and `model_ema` first); `module.`
    in front of every name is taken off. Of Python objects only argparse.Namespace is let through, as plain values.

    Raises:
        ModelError: the file is missing, empty, cut off, something else, or asks for code; or it holds no tensors.
    """
    beginning = _beginning(path)
    if beginning[8:9] == b"{":
        return Weights(_float32(_read_safetensors(path)))
    if beginning.startswith(b"PK"):
        _check_archive(path)
    elif not beginning.startswith(b"\x80"):
        raise ModelError(
            f"{path} is no checkpoint: it begins with {beginning[:12]!r}",
            expected=_EXPECTED,
            cause="another format under this name",
        )
    raw = _unpickled(path)
    found, wrapper = _unwrapped(path, raw)
    return Weights(_float32(_without_prefixes(found)), _args(raw), wrapper in _AVERAGED)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            beginning = stream.read(64)
    except FileNotFoundError as error:
        raise ModelError(f"no weights at {path}", expected=_EXPECTED, cause="a typing error") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", expected=_EXPECTED) from error
    if not beginning:
        raise ModelError(
            f"{path} is empty",
            expected=_EXPECTED,
            cause="a download or a copy that stopped at once",
            fix="download or copy it again and compare the size",
        )
    refuse_other_files(path, beginning, expected=_EXPECTED, takes={ZIP, PICKLE})
    return beginning


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _check_archive(path: Path) -> None:
    """A zip file: a whole one, of torch.save, and not a compiled program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _damaged(path, "the zip archive has no end") from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ModelError(
            f"{path} is a zip archive, but not one of torch.save: it holds {', '.join(names[:3]) or 'nothing'}",
            expected=_EXPECTED,
            cause="a packed folder, or weights of another framework",
            fix="unpack it, and give the file with the weights",
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise ModelError(
            f"{path} is a TorchScript program, not a checkpoint",
            expected=_EXPECTED,
            cause="it was made by torch.jit.save",
            fix=_RESAVE,
        )


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a pickle of an unusual version is read all the same, or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|global) ([\w.]+)", str(error))
        if wanted is None:
            raise _damaged(path, "its pickle breaks off, or is not one of tensors") from error
        raise _refused(path, wanted[1] or wanted[2]) from error
    except (OSError, RuntimeError) as error:
        raise _damaged(path, (str(error).strip().splitlines() or ["it ends too early"])[0][:200]) from error
    except Exception as error:  # a cut-off or foreign pickle fails wherever its reader happens to stumble
        raise _damaged(path, "its pickle breaks off, or is not one of torch.save") from error


def _args(raw: Any) -> Mapping[str, object]:
    args = raw.get("args") if isinstance(raw, Mapping) else None
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return args if isinstance(args, Mapping) else {}


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"cannot read the checkpoint {path}: {reason}",
        expected=_EXPECTED,
        cause="a download or a copy that was cut off, or another kind of file under this name",
        fix="download or copy it again and compare the size",
    )


def _refused(path: Path, wanted: str) -> ModelError:
    return ModelError(
        f"{path} is refused: its pickle asks for {wanted}, and making such an object runs code",
        expected="tensors, numbers, texts and argparse.Namespace only",
        cause="the whole model was saved instead of its weights, or objects of the training program beside them; "
        "rarely, a file that was cut off within a name",
        fix=_RESAVE,
    )


def _unwrapped(path: Path, raw: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors and the outermost key that they lay under."""
    outermost = ""
    while isinstance(raw, Mapping):
        tensors = {name: value for name, value in raw.items() if isinstance(value, Tensor)}
        inner = next((key for key in _WRAPPERS if isinstance(raw.get(key), Mapping) and raw[key]), None)
        if inner is None or len(tensors) > 1:
            if tensors:
                return {str(name): value for name, value in tensors.items()}, outermost
            break
        outermost, raw = outermost or inner, raw[inner]
    seen = (
        f"the keys {', '.join(map(str, list(raw)[:8]))}" if isinstance(raw, Mapping) else type(raw).__name__
    )
    raise ModelError(
        f"{path} holds no weights: found {seen}",
        expected=f"tensors by name, or such a dictionary under {', '.join(_WRAPPERS)}",
        cause="the file holds the state of an optimiser, results, or something else of the training",
        fix=_RESAVE,
    )


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
