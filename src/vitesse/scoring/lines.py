"""The answers as JSON lines: appended as they come, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from vitesse.backends.closing import Closing
from vitesse.errors import UsageError
from vitesse.storage import storage_error, write_atomically


class Lines(Closing):
    """Writes lines to a file, or to the terminal.

    Beside an unfinished FILE lies FILE.unfinished, which says what made it. The same command goes on from there; a file
    without it was finished or is somebody else's, and is not touched.

    Args:
        path: None = standard output.
        made_by: what the answers depend on; an unfinished file of something else is refused.

    Raises:
        UsageError: the file exists and is not the beginning of this work.
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path | None, made_by: dict[str, str]) -> None:
        self._path = path
        self.known: frozenset[str] = frozenset()
        self._stream: TextIO = sys.stdout
        if path is None:
            return
        self._mark = path.with_name(f"{path.name}.unfinished")
        wanted = json.dumps(made_by, sort_keys=True)
        try:
            if path.exists():
                self._check(path, wanted)
                self.known = _repaired(path)
            else:
                write_atomically(self._mark, wanted.encode())
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise storage_error(path, error) from error

    def _check(self, path: Path, wanted: str) -> None:
        found = self._mark.read_text() if self._mark.exists() else None
        if found == wanted:
            return
        raise UsageError(
            f"{path} exists and is " + ("finished" if found is None else "the beginning of other work"),
            expected="a new file, or one that the same command left unfinished",
            cause="" if found is None else "another run, or another --threshold",
            fix=f"remove {path}, or name another file",
        )

    def add(self, lines: Iterable[str]) -> None:
        """Write lines and flush them; raises StorageError where that fails."""
        try:
            for line in lines:
                self._stream.write(line + "\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise storage_error(self._path or Path("standard output"), error) from error

    def finish(self) -> None:
        """Say that nothing is missing any more."""
        if self._path is not None:
            self._mark.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            self._stream.close()


def _repaired(path: Path) -> frozenset[str]:
    """Cut off a last line that was not written to its end; return the images that have one."""
    known: set[str] = set()
    end = 0
    with path.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            known.add(json.loads(line)["image"])
            end += len(line)
        stream.truncate(end)
    return frozenset(known)
