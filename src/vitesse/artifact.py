"""A model file on its way through the stages, named by its content.

The hash is the identity: the file that was verified is the file that was measured and is the file that is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitesse.errors import RunFolderError
from vitesse.ledger import ArtifactRef
from vitesse.spec import ModelSpec
from vitesse.storage import sha256_of, write_atomically


@dataclass(frozen=True)
class Provenance:
    """Where an artifact came from: the stage that made it, its input's hash, the options that mattered."""

    stage: str
    parent_sha256: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """One model file. `backend` names the runtime it was built for; plain ONNX runs on `onnxruntime`."""

    path: Path
    sha256: str
    bytes: int
    spec: ModelSpec
    provenance: Provenance
    backend: str = "onnxruntime"

    def check(self) -> None:
        """Compare the file with its hash; raises RunFolderError when it was changed or is gone."""
        if not self.path.is_file():
            raise RunFolderError(
                f"the artifact {self.path} is gone",
                expected=f"a file with sha256 {self.sha256[:12]}…",
                fix="repeat the `vitesse optimize` command that made the run",
            )
        found = sha256_of(self.path)
        if found != self.sha256:
            raise RunFolderError(
                f"the artifact {self.path} has sha256 {found[:12]}…",
                expected=f"{self.sha256[:12]}…, the file that was verified",
                cause="the file was changed after it had been verified",
                fix="repeat the `vitesse optimize` command that made the run",
            )

    def ref(self, run: Path) -> ArtifactRef:
        """Return the ledger's reference, with the path relative to the run folder where it lies inside it."""
        inside = self.path.is_relative_to(run)
        path = self.path.relative_to(run).as_posix() if inside else str(self.path)
        return ArtifactRef(path, self.sha256, self.bytes, self.backend)


class Store:
    """The `artifacts/` folder of a run; file names carry stage and hash.

    `home` is the runtime that portable files are run with.
    """

    def __init__(self, folder: Path, home: str = "onnxruntime") -> None:
        self.folder, self.home = folder, home

    def put(
        self,
        content: bytes,
        spec: ModelSpec,
        provenance: Provenance,
        *,
        backend: str = "",
        suffix: str,
    ) -> Artifact:
        """Write `content` atomically under `STAGE-HASH.suffix` and return the artifact.

        `backend` names the runtime it was built for; without one it is portable, and runs on the run's own.

        Raises:
            StorageError: the file cannot be written; earlier artifacts are untouched.
        """
        digest = hashlib.sha256(content).hexdigest()
        stage = provenance.stage.replace(":", "-").replace("/", "-")
        path = self.folder / f"{stage}-{digest[:12]}{suffix}"
        if not (path.is_file() and sha256_of(path) == digest):
            write_atomically(path, content)
        return Artifact(path, digest, len(content), spec, provenance, backend or self.home)
