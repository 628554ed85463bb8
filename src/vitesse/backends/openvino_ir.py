"""OpenVINO's own format as one file: an uncompressed zip of graph and weights, so that one hash covers both."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import openvino

IR_SUFFIX = ".openvino"
_MEMBERS = ("model.xml", "model.bin")


def pack_ir(model: Any) -> bytes:
    """Serialise an `openvino.Model` with float32 weights; the same model gives the same bytes."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder, zipfile.ZipFile(packed, "w") as archive:
        openvino.save_model(model, Path(folder) / _MEMBERS[0], compress_to_fp16=False)
        for member in _MEMBERS:
            # A fixed date: the hash must depend on the content alone.
            entry = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, (Path(folder) / member).read_bytes())
    return packed.getvalue()


def read_ir(core: Any, path: Path) -> Any:
    """Read a packed model from memory.

    Raises:
        zipfile.BadZipFile, KeyError, OSError, RuntimeError: the file is damaged, or is something else.
    """
    with zipfile.ZipFile(path) as archive:
        graph, weights = (archive.read(member) for member in _MEMBERS)
    return core.read_model(model=graph, weights=weights)
