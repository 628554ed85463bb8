"""Finished measurements of a search, kept as files, so that an interrupted search goes on behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitesse.run import key_of
from vitesse.storage import write_atomically


class TrialStore:
    """One JSON file per measurement under `folder`, named by a hash of everything it depends on.

    A file that cannot be read counts as absent: the measurement is repeated, never trusted by halves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self, *parts: Any) -> dict[str, Any] | None:
        """Return the measurement that depends on exactly `parts`, None where it was not made yet."""
        try:
            found = json.loads(self._path(parts).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def finish(self, measured: Mapping[str, Any], *parts: Any) -> None:
        """Keep a measurement; raises StorageError where the folder cannot be written."""
        write_atomically(self._path(parts), json.dumps(measured, allow_nan=False).encode())

    def _path(self, parts: tuple[Any, ...]) -> Path:
        return self.folder / f"trial-{key_of(parts)}.json"
