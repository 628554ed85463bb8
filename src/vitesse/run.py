"""The run folder: what lies where, whose run it is, and which steps are already done.

run/ledger.json        rows and the choice            run/report.html, report.md
run/artifacts/         STAGE-HASH.onnx                run/report-data.json, pictures/
run/steps/KEY.json     one finished row each; the key hashes everything the row depends on; export-KEY.json: an export
run/calibration/       what flowed through the graph    run/search-STAGE.json  a search and its curve
run/samples/STAGE.json raw latency samples            run/run.json    source and data the folder belongs to
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import LoadOptions
from vitesse.errors import RunFolderError, VitesseError
from vitesse.ledger import Ledger, Row, Verdict, load_ledger, row_from
from vitesse.spec import ModelSpec, spec_from_mapping
from vitesse.storage import sha256_of, write_atomically

IDENTITY = "run.json"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its ledger."""

    folder: Path
    ledger: Ledger

    @property
    def verified(self) -> bool:
        """Whether the chosen artifact passed every check."""
        return self.ledger.chosen is not None and self.ledger.chosen_row().verdict is Verdict.PASS

    @property
    def artifact(self) -> Artifact:
        """The chosen artifact; raises RunFolderError when its file was changed since it was verified."""
        return artifact_of(self.folder, self.ledger.chosen_row(), spec_of(self.folder))


def open_run(folder: Path) -> Run:
    """Read a run folder; raises RunFolderError when it is none."""
    return Run(folder, load_ledger(folder / "ledger.json"))


def spec_of(folder: Path) -> ModelSpec:
    """Return the spec the run was made with."""
    return spec_from_mapping(_identity(folder)["spec"])


def artifact_of(folder: Path, row: Row, spec: ModelSpec) -> Artifact:
    """Return the checked artifact of a row; `spec` is the source's, the row's own rules win over its."""
    if row.artifact is None:
        raise RunFolderError(
            f"the step {row.stage} made no artifact", expected=f"one; it ended with {row.reason}"
        )
    ref = row.artifact
    if row.preprocessing is not None:
        spec = spec.with_preprocessing(row.preprocessing)
    elif row.input_size is not None:  # a run of an earlier version
        spec = replace(spec, preprocessing=replace(spec.preprocessing, size=row.input_size))
    artifact = Artifact(folder / ref.path, ref.sha256, ref.bytes, spec, Provenance(row.stage), ref.backend)
    artifact.check()
    return artifact


def load_options(row: Row) -> LoadOptions:
    """Return the options a row's figures were taken with."""
    return LoadOptions(threads=row.run_options.get("threads", 0), plain=bool(row.run_options.get("plain")))


class RunFolder:
    """Claims a folder for one source and one data set, and keeps finished steps."""

    def __init__(self, folder: Path, home: str = "onnxruntime") -> None:
        self.folder = folder
        self.store = Store(folder / "artifacts", home)
        self.calibration = folder / "calibration"

    def claim(self, source_sha256: str, data_sha256: str, spec: ModelSpec) -> None:
        """Take the folder for this model and data.

        Raises:
            RunFolderError: it holds another model's or data set's run, or files that are no run.
            StorageError: it cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunFolderError(
                f"{self.folder} is a file",
                expected="a folder, new or of the same run",
                fix="choose another folder with --out",
            )
        wanted = {
            "source_sha256": source_sha256,
            "data_sha256": data_sha256,
            "spec": json.loads(spec.to_json()),
        }
        if (self.folder / IDENTITY).is_file():
            found = _identity(self.folder)
            different = [name for name in ("source_sha256", "data_sha256") if found.get(name) != wanted[name]]
            if different:
                what = " and ".join(name.removesuffix("_sha256") for name in different).replace(
                    "source", "model"
                )
                raise RunFolderError(
                    f"{self.folder} holds a run of another {what}",
                    expected="an empty folder, or a run of the same model and data to go on with",
                    cause="the model file or the images were changed, or --out names an old run",
                    fix="choose another folder with --out, or delete this one",
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise RunFolderError(
                f"{self.folder} is not empty and is not a run",
                expected="a new or empty folder",
                fix="choose another folder with --out",
            )
        write_atomically(self.folder / IDENTITY, (json.dumps(wanted, indent=1) + "\n").encode())

    def finished(self, key: str) -> Row | None:
        """Return the row of a step done before, if its artifact is still the same file."""
        path = self.folder / "steps" / f"{key}.json"
        try:
            row = row_from(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        ref = row.artifact
        if ref is not None:
            file = self.folder / ref.path
            if not file.is_file() or sha256_of(file) != ref.sha256:
                return None
        return row

    def finish(self, key: str, row: Row) -> None:
        """Keep a finished row, so that an interrupted run goes on behind it."""
        content = json.dumps(asdict(row), allow_nan=False)
        write_atomically(self.folder / "steps" / f"{key}.json", content.encode())

    def exported(self, key: str) -> Artifact | None:
        """Return the graph exported before from the same weights in the same way, if its file is still the same."""
        try:
            kept = json.loads((self.folder / "steps" / f"export-{key}.json").read_text())
            spec, provenance = spec_from_mapping(kept["spec"]), Provenance("source", None, kept["how"])
            path = self.folder / kept["path"]
            artifact = Artifact(path, kept["sha256"], path.stat().st_size, spec, provenance, self.store.home)
            artifact.check()
        except (OSError, ValueError, TypeError, KeyError, VitesseError):
            return None
        return artifact

    def keep_export(self, key: str, artifact: Artifact) -> None:
        """Remember an exported graph that lies in the run's store, so that a resumed run need not export again."""
        kept = {
            "path": artifact.path.relative_to(self.folder).as_posix(),
            "sha256": artifact.sha256,
            "spec": json.loads(artifact.spec.to_json()),
            "how": dict(artifact.provenance.options),
        }
        write_atomically(self.folder / "steps" / f"export-{key}.json", json.dumps(kept).encode())

    def keep_samples(self, stage: str, samples: Mapping[str, Any]) -> None:
        """Write the raw latency samples of a step."""
        name = stage.replace(":", "-").replace("/", "-")
        write_atomically(self.folder / "samples" / f"{name}.json", json.dumps(samples).encode())


def key_of(parts: Iterable[Any]) -> str:
    """Hash everything a step depends on."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True, default=str).encode()).hexdigest()[:24]


def _identity(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITY
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"cannot read {path}: {error}",
            expected="the file that `vitesse optimize` writes first",
            cause="the folder is not a run, or the file was edited",
        ) from error
