"""The engine as one file: an uncompressed zip of the graph, the measured tactics, the compiled kernels, the manifest.

manifest.json    what it was built from and with, and the sha256 of every other file
model.onnx       the graph, byte for byte
tactics.json     signature → tactic, with the microseconds of all that were tried
triton/KEY/FILE  compiled kernels, as in Triton's cache folder

Every byte is read once, held against its hash, and used from memory; nothing is unpacked by the names in the file. The
hashes find damage, not malice: compiled kernels are programs, so that the file must be as trusted as they.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vitesse.artifact import Artifact, Provenance
from vitesse.backends.torch_cuda.manifest import ArchiveError, EngineManifest, manifest_of
from vitesse.storage import sha256_of

SUFFIX = ".torchcuda"
MODEL, TACTICS, MANIFEST, KERNELS = "model.onnx", "tactics.json", "manifest.json", "triton/"
_NAME = re.compile(r"triton/[A-Za-z0-9_-]{8,128}/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
# The same content gives the same file.
_DATE = (1980, 1, 1, 0, 0, 0)
_MOST_FILES = 20_000
_LARGEST_TEXT = 64 * 2**20


@dataclass(frozen=True)
class Archive:
    """What an engine file holds. `kernels` is "KEY/FILE" → content."""

    manifest: EngineManifest
    model: bytes
    tactics: str
    kernels: Mapping[str, bytes]


def pack(archive: Archive) -> bytes:
    """Return the bytes of an engine file; the manifest gets the hashes of the others."""
    parts = {MODEL: archive.model, TACTICS: archive.tactics.encode()}
    parts |= {KERNELS + name: content for name, content in sorted(archive.kernels.items())}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    manifest = replace(archive.manifest, files=hashes)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, content in {MANIFEST: manifest.to_json().encode(), **parts}.items():
            file.writestr(zipfile.ZipInfo(name, _DATE), content)
    return out.getvalue()


def unpack(path: Path) -> Archive:
    """Read and check an engine file.

    Raises:
        ArchiveError: it is gone, damaged, or something else; says which file of it and what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as file:
            parts = _parts(path, file)
    except FileNotFoundError as error:
        raise ArchiveError(
            f"{path} cannot be read",
            expected="an engine file",
            cause="the file is gone",
            fix="check the path",
        ) from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        manifest = manifest_of(parts.pop(MANIFEST).decode(), str(path))
        tactics = parts[TACTICS].decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error
    _check_hashes(path, parts, manifest)
    kernels = {name.removeprefix(KERNELS): part for name, part in parts.items() if name.startswith(KERNELS)}
    return Archive(manifest, parts[MODEL], tactics, kernels)


def read_manifest(path: Path) -> EngineManifest:
    """Read the manifest alone, unchecked against the rest; raises ArchiveError as `unpack`."""
    try:
        with zipfile.ZipFile(path) as file, file.open(MANIFEST) as entry:
            text = entry.read(_LARGEST_TEXT).decode()
    except (
        OSError,
        zipfile.BadZipFile,
        NotImplementedError,
        KeyError,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        raise _damaged(path, str(error)) from error
    return manifest_of(text, str(path))


def newest_engine(folder: Path, onnx_sha256: str = "") -> Artifact | None:
    """Return the engine of a folder that was built last, of one graph if it is named; None where there is none.

    A file that is no engine, or is damaged, does not count.
    """
    found: list[tuple[str, Path, EngineManifest]] = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            manifest = read_manifest(path)
        except ArchiveError:
            continue
        found.append((manifest.created, path, manifest))
    wanted = [entry for entry in found if onnx_sha256 in ("", entry[2].onnx_sha256)]
    if not wanted:
        return None
    _, path, manifest = max(wanted, key=lambda entry: entry[:2])
    provenance = Provenance("build:torch-cuda", manifest.onnx_sha256)
    return Artifact(path, sha256_of(path), path.stat().st_size, manifest.spec, provenance, "torch-cuda")


def _parts(path: Path, file: zipfile.ZipFile) -> dict[str, bytes]:
    """Every file of the zip; what is refused is refused before it is read."""
    entries = file.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > _MOST_FILES or len(set(names)) != len(names):
        raise _damaged(path, f"{len(entries)} files, some of the same name or too many")
    missing = {MODEL, TACTICS, MANIFEST} - set(names)
    if missing:
        raise _damaged(path, f"it holds no {', '.join(sorted(missing))}")
    size = path.stat().st_size
    for entry in entries:
        if entry.filename not in (MODEL, TACTICS, MANIFEST) and not _NAME.fullmatch(entry.filename):
            raise _damaged(path, f"it holds a file {entry.filename!r}, which no engine has")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise _damaged(path, f"{entry.filename} is compressed or larger than the whole")
        if entry.filename in (TACTICS, MANIFEST) and entry.file_size > _LARGEST_TEXT:
            raise _damaged(path, f"{entry.filename} has {entry.file_size:,} bytes")
    if sum(entry.file_size for entry in entries) > size:
        raise _damaged(path, "its files overlap")
    return {entry.filename: file.read(entry) for entry in entries}


def _check_hashes(path: Path, parts: Mapping[str, bytes], manifest: EngineManifest) -> None:
    if parts.keys() != manifest.files.keys():
        other = sorted(parts.keys() ^ manifest.files.keys())
        raise _damaged(path, f"its manifest and its content differ in {', '.join(other[:5])}")
    for name, content in parts.items():
        if hashlib.sha256(content).hexdigest() != manifest.files[name]:
            raise _damaged(path, f"{name} has another sha256 than its manifest says")


def _damaged(path: Path, said: str) -> ArchiveError:
    return ArchiveError(
        f"{path} is no whole engine: {said}",
        expected=f"a {SUFFIX} file as `vitesse build` writes it",
        cause="the file is truncated or damaged, or is something else",
        fix="copy it again, or build it again: vitesse build MODEL.onnx --target torch-cuda",
    )
