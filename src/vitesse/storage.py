"""Writing files so that nothing is lost: atomic replacement, and a full disk named as such."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from vitesse.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to disk, then rename; an old file survives any failure.

    Raises:
        StorageError: disk full, read-only file system or no permission; no partial file is left.
    """
    # Opened by name and not through tempfile, so that the file gets the permissions the umask grants.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """Turn an OSError met while writing `path` into a StorageError with cause and next step."""
    causes = {
        errno.ENOSPC: ("the disk is full", "free some space and repeat the command: finished steps are kept"),
        errno.EDQUOT: (
            "the quota is used up",
            "free some space and repeat the command: finished steps are kept",
        ),
        errno.EROFS: ("the file system is read-only", "choose a writable folder with --out"),
        errno.EACCES: ("no permission to write there", "choose a writable folder with --out"),
    }
    cause, fix = causes.get(
        error.errno or 0, (error.strerror or str(error), "choose another folder with --out")
    )
    return StorageError(f"cannot write {path}", expected="a writable folder", cause=cause, fix=fix)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's content, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
