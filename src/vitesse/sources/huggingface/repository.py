"""A model of the hub, or a local folder with the same files: where it lies, what it says of itself, its hash.

Weights are taken as safetensors where they exist. A `.bin` is a pickle: it is read by torch with `weights_only`,
which refuses everything but tensors. Code that a repository brings along is never run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from vitesse.errors import ModelError

_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Repository:
    """The files of one model.

    Args:
        name: as the user wrote it.
        folder: where the files lie.
        config: of `config.json`.
        processor: how images are prepared, of `preprocessor_config.json`; None when there is no such file.
        weights: the files with the tensors and, where there are several, their index.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    processor: Mapping[str, Any] | None
    weights: tuple[Path, ...]

    @property
    def safetensors(self) -> bool:
        """Whether the weights are safetensors, not a pickle."""
        return any(path.suffix == ".safetensors" for path in self.weights)

    @property
    def identity(self) -> str:
        """Hash (sha256) of everything that decides the graph and its spec: configs and weights."""
        total = hashlib.sha256()
        for path in (self.folder / "config.json", *self.weights):
            with path.open("rb") as file:
                total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        total.update(json.dumps(self.processor, sort_keys=True).encode())
        return total.hexdigest()


def find_repository(name: str) -> Repository:
    """Find a model by the path of a local folder, or by its name on the hub ("PekingU/rtdetr_r50vd").

    A hub name is fetched into the cache of huggingface_hub; when the hub cannot be reached, or `HF_HUB_OFFLINE` is
    set, what the cache holds is used.

    Raises:
        ModelError: no such folder; the hub neither has the model nor can be reached; a file is missing or not JSON.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetch(name)
    config = _read_json(folder / "config.json")
    weights = _matching(folder, _SAFETENSORS) or _matching(folder, _PICKLES)
    if not any(path.suffix != ".json" for path in weights):
        raise ModelError(
            f"{name} has no weights",
            expected=f"model.safetensors or pytorch_model.bin in {folder}",
            cause="a download that was not finished, or weights of another framework",
            fix="download the model again, with its weights",
        )
    return Repository(name, folder, config, _processor(folder), weights)


def _fetch(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"no folder at {name}",
            expected="a folder with config.json and weights, or a name on the hub such as facebook/detr-resnet-50",
            cause="a typing error in the path",
        )
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_CONFIGS, *_SAFETENSORS]))
        if not _matching(folder, _SAFETENSORS):
            folder = Path(snapshot_download(name, allow_patterns=[*_CONFIGS, *_PICKLES]))
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {name}, and there is no folder of that name here",
            expected="a name on the hub such as facebook/detr-resnet-50, or a local folder",
            cause="a typing error, or a private or gated model for which no access token is set",
            fix="run `hf auth login` for a private model",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name} cannot be fetched: it is not in the cache, and the hub cannot be reached",
            expected="a folder of that name, the model in the cache of huggingface_hub, or a connection to the hub; "
            "tried in this order",
            cause=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            fix=f"run `hf download {name} --local-dir FOLDER` on a machine with a connection, then give hf:./FOLDER",
        ) from error
    return folder


def _matching(folder: Path, patterns: Iterable[str]) -> tuple[Path, ...]:
    return tuple(sorted(path for pattern in patterns for path in folder.glob(pattern)))


def _processor(folder: Path) -> Mapping[str, Any] | None:
    """Read how images are prepared; a `processor_config.json` holds it among other processors."""
    if (folder / "preprocessor_config.json").exists():
        return _read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").exists():
        nested = _read_json(folder / "processor_config.json").get("image_processor")
        return nested if isinstance(nested, dict) else None
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"no {path.name} in {path.parent}",
            expected="a folder as `save_pretrained` of transformers writes it",
            cause="another folder, or a download that was not finished",
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", expected="the file as it was downloaded") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds a {type(raw).__name__}", expected="a JSON object")
    return raw
