"""Published weights by URL: kept in a cache, checked by sha256, resumed where a download was cut off."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vitesse.errors import ModelError
from vitesse.progress import Progress, Silent
from vitesse.storage import sha256_of, storage_error, write_atomically

_CHUNK = 2**20
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Remote:
    """Weights somebody has published.

    Args:
        url: http or https.
        sha256: the file's hash, or as many of its first hexadecimal digits as the publisher gives; empty where none
            is given: then the hash of the first download is kept beside the file and holds from there on.
    """

    url: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        """The last part of the URL, without anything that could leave the cache folder."""
        return Path(unquote(urlsplit(self.url).path)).name


def cache_folder() -> Path:
    """Return where downloads are kept: `$XDG_CACHE_HOME/vitesse`, else `~/.cache/vitesse`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitesse"


def download(remote: Remote, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the file in the cache, downloading it when it is not there.

    Raises:
        ModelError: the address cannot be reached, or what came does not have the hash.
        StorageError: the cache cannot be written.
    """
    folder = folder or cache_folder()
    path = folder / remote.file_name
    recorded = path.with_name(path.name + ".sha256")
    expected = remote.sha256 or (recorded.read_text().strip() if recorded.is_file() else "")
    if path.is_file():
        found = sha256_of(path)
        if found.startswith(expected):
            return path
        raise _mismatch(f"{path} in the cache", found, expected, f"delete {path} and repeat the command")
    part = path.with_name(path.name + ".part")
    _receive(remote, part, progress or Silent())
    found = sha256_of(part)
    if not found.startswith(expected):
        part.unlink()
        raise _mismatch(f"what {remote.url} sent", found, expected, "repeat the command")
    write_atomically(recorded, f"{found}\n".encode())
    part.replace(path)
    return path


def _receive(remote: Remote, part: Path, progress: Progress) -> None:
    """Write the body to `part`, going on behind what an interrupted download has left there."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        done = part.stat().st_size if part.is_file() else 0
    except OSError as error:
        raise storage_error(part, error) from error
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            resumed = done > 0 and response.status == 206
            left = int(response.headers.get("Content-Length") or 0)
            progress.stage("download", remote.file_name, max(1, left // _CHUNK))
            received = _append(response, part, progress, keep=resumed)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is whole, and its hash decides
            return
        raise _unreachable(remote, f"HTTP {error.code} {error.reason}") from error
    except (HTTPException, OSError) as error:  # URLError, time-outs and broken connections are OSErrors
        raise _unreachable(remote, str(getattr(error, "reason", error))) from error
    if received < left:
        raise _unreachable(remote, f"the connection ended after {received} of {left} bytes")


def _append(response: HTTPResponse, part: Path, progress: Progress, *, keep: bool) -> int:
    received = 0
    with _written(part, "ab" if keep else "wb") as write:
        while chunk := response.read(_CHUNK):
            write(chunk)
            received += len(chunk)
            progress.advance(len(chunk) / _CHUNK)
    return received


@contextmanager
def _written(path: Path, mode: str) -> Iterator[Callable[[bytes], None]]:
    """Open a file whose own failures are told apart from those of the network."""

    def write(chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            raise storage_error(path, error) from error

    try:
        file = path.open(mode)
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        yield write


def _unreachable(remote: Remote, reason: str) -> ModelError:
    return ModelError(
        f"cannot download {remote.url}: {reason}",
        expected=f"the file {remote.file_name}, or a copy of it on this machine",
        cause="no network, a proxy that is not set, or the file has moved",
        fix=f"repeat the command to go on, or download it elsewhere and give --weights {remote.file_name}",
    )


def _mismatch(what: str, found: str, expected: str, fix: str) -> ModelError:
    return ModelError(
        f"{what} has sha256 {found[:16]}…",
        expected=f"one that begins with {expected[:16]}",
        cause="a download that was cut off or changed on its way, or a file that was replaced",
        fix=fix,
    )
