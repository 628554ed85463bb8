"""What stands in an engine file beside the graph: what it was built from, with what, for what, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vitesse._version import __version__
from vitesse.errors import BackendError, VitesseError
from vitesse.spec import ModelSpec, spec_from_mapping

SCHEMA = 1

Shapes = Mapping[str, tuple[int, ...]]


class ArchiveError(BackendError):
    """An engine file is damaged, was made by something else, or has another schema."""


@dataclass(frozen=True)
class EngineManifest:
    """Everything that decides whether the measured tactics hold somewhere.

    Args:
        made_on: versions and GPU of the build, as `device.versions` names them.
        onnx_sha256: of the graph file that it was built from.
        precision: the types of the network's products, such as "fp8+fp16".
        shapes: that were planned for: input → shape.
        spec: how the model is fed and read.
        files: every other file of the archive → its sha256.
        command: repeats the build; "" where a program built it.
        seconds: of the whole build.
        created: UTC, ISO 8601.
    """

    made_on: Mapping[str, str]
    onnx_sha256: str
    precision: str
    shapes: tuple[Shapes, ...]
    spec: ModelSpec
    files: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
    created: str = ""
    vitesse: str = __version__
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Serialise, for a reader and for `manifest_of`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @property
    def rebuild(self) -> str:
        """What to type to build it again."""
        return self.command or "vitesse build MODEL.onnx --target torch-cuda"


def manifest_of(text: str, where: str) -> EngineManifest:
    """Read a manifest back.

    Args:
        where: the file it stands in, for messages.

    Raises:
        ArchiveError: it is not what `EngineManifest.to_json` writes, or has another schema.
    """
    try:
        raw = json.loads(text)
        schema = raw["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(where, error) from error
    if schema != SCHEMA:
        raise ArchiveError(
            f"{where} has a manifest of schema {schema}, written by Vitesse {raw.get('vitesse', '?')}",
            expected=f"schema {SCHEMA}, as Vitesse {__version__} writes it",
            cause="another version of Vitesse built it",
            fix=f"build it again: {raw.get('command') or 'vitesse build MODEL.onnx --target torch-cuda'}",
        )
    try:
        return _from_mapping(raw)
    except (ValueError, KeyError, TypeError, AttributeError, VitesseError) as error:
        raise _damaged(where, error) from error


def _from_mapping(raw: Mapping[str, Any]) -> EngineManifest:
    values = dict(raw)
    values["made_on"] = {str(name): str(value) for name, value in raw["made_on"].items()}
    values["shapes"] = tuple(
        {str(name): tuple(int(size) for size in shape) for name, shape in entry.items()}
        for entry in raw["shapes"]
    )
    values["spec"] = spec_from_mapping(raw["spec"])
    values["files"] = {str(name): str(digest) for name, digest in raw["files"].items()}
    manifest = EngineManifest(**values)
    for name in ("onnx_sha256", "precision", "command", "created", "vitesse"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} is {values[name]!r}, not a text")
    return manifest


def _damaged(where: str, error: Exception) -> ArchiveError:
    said = f"no {error}" if isinstance(error, KeyError) else str(error)
    return ArchiveError(
        f"cannot read the manifest in {where}: {said}",
        expected="the JSON that `vitesse build` writes",
        cause="the file is truncated or damaged, or was edited",
        fix="build the engine again with `vitesse build`",
    )
