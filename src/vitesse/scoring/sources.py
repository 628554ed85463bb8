"""What is to be scored: image files, folders of them, and Parquet files, in the order in which they were named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitesse.data.split import find_images
from vitesse.errors import DataError

TABLE = ".parquet"


@dataclass(frozen=True)
class Sources:
    """Image files, each once, and Parquet files."""

    pictures: tuple[Path, ...]
    tables: tuple[Path, ...]


def find_sources(named: Sequence[str]) -> Sources:
    """Return what files and folders stand for; folders are searched to the bottom, for images and for Parquet.

    Raises:
        DataError: a path that does not exist, or nothing to score in all of them.
    """
    pictures: list[Path] = []
    tables: list[Path] = []
    for path in map(Path, named):
        if path.is_dir():
            pictures += find_images(path)
            tables += sorted(path.rglob(f"*{TABLE}"))
        elif not path.exists():
            raise DataError(f"no image at {path}", cause="a typing error, or the file was moved")
        else:
            (tables if path.suffix.lower() == TABLE else pictures).append(path)
    if not pictures and not tables:
        raise DataError(
            f"no image in {', '.join(named)}", expected=f"image files, folders of them, or {TABLE} files"
        )
    return Sources(tuple(dict.fromkeys(pictures)), tuple(dict.fromkeys(tables)))
