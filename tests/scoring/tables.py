"""Writes small Parquet files of images."""

from pathlib import Path

import pyarrow
from pyarrow import parquet


def table(
    path: Path, images: list[bytes | None], names: list[str | None] | None = None, rows: int = 3
) -> Path:
    """Write images, and their names where there are any; None is a missing value. `rows`: in a group."""
    columns = {"image": pyarrow.array(images, pyarrow.binary())}
    if names is not None:
        columns["path"] = pyarrow.array(names, pyarrow.string())
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path
