"""A source → the content of one verified ONNX file, which carries its spec, and the story of how it was made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.export.check import check_export
from vitesse.metadata import serialise
from vitesse.progress import Progress, Silent
from vitesse.sources.signature import check_spec_against, opset_of
from vitesse.sources.source import AXES, ExportOptions, Source
from vitesse.spec import ModelSpec

STAGE = "source"


@dataclass(frozen=True)
class ExportedFile:
    """The content of an ONNX file that answered as the model it was exported from.

    how: source, opset, open axes and the distance to the framework's own answer, in words for the ledger.
    """

    content: bytes
    spec: ModelSpec
    how: Mapping[str, str]

    def put(self, store: Store) -> Artifact:
        """Write the file into `store`; raises StorageError."""
        return store.put(self.content, self.spec, Provenance(STAGE, None, self.how), suffix=".onnx")


def export_source(source: Source, options: ExportOptions, progress: Progress | None = None) -> ExportedFile:
    """Export and verify against the framework's own answer.

    Raises:
        UsageError: the source cannot have an option.
        ModelError: the export failed, or the model is too large for one file.
        NotVerified: the graph does not answer as the model does.
    """
    progress = progress or Silent()
    progress.stage(STAGE, "exporting", 2)
    exported = source.export(options)
    check_spec_against(exported.model, exported.spec)
    how = {
        "exported from": source.title,
        "opset": str(opset_of(exported.model)),
        "open axes": ", ".join(axis for axis in AXES if axis in exported.dynamic) or "none",
    }
    content = serialise(exported.model, exported.spec)
    progress.advance()
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        tried = ExportedFile(content, exported.spec, how).put(Store(Path(folder)))
        distances = check_export(exported, tried)
    progress.advance()
    how["largest difference to the model itself"] = "; ".join(one.describe() for one in distances)
    return ExportedFile(content, exported.spec, how)
