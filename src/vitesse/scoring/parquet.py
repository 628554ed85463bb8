"""Parquet files of images: checked before anything starts, read a few rows at a time.

Columns: `image` (binary: the bytes of an image file) and, optional, `path` (text: the image's name in the answers).
An image without a name is called after its file and row: `shard-0.parquet#17`, counted from 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

from vitesse.errors import DataError

IMAGE, PATH = "image", "path"
# Encoded images of some megabytes each: so many of them may lie in memory for each reader.
_ROWS = 16


@dataclass(frozen=True)
class RowGroup:
    """One group of rows, which is read by one task; `first` is the number of its first row in the file."""

    file: Path
    group: int
    first: int


def row_groups(file: Path) -> list[RowGroup]:
    """Return a file's groups of rows.

    Raises:
        DataError: it is no Parquet file, or has no column `image` of bytes.
    """
    try:
        with parquet.ParquetFile(file) as opened:
            _check(file, opened.schema_arrow)
            counts = [opened.metadata.row_group(index).num_rows for index in range(opened.num_row_groups)]
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(
            f"cannot read {file}: {error}",
            expected="a Parquet file",
            cause="another kind of file under this name, or a copy that was cut off",
        ) from error
    return [RowGroup(file, index, sum(counts[:index])) for index in range(len(counts))]


def _check(file: Path, schema: pyarrow.Schema) -> None:
    wanted = {IMAGE: (pyarrow.types.is_binary, pyarrow.types.is_large_binary)}
    if PATH in schema.names:
        wanted[PATH] = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    for column, kinds in wanted.items():
        found = schema.field(column).type if column in schema.names else None
        if found is None or not any(kind(found) for kind in kinds):
            has = ", ".join(f"{field.name}: {field.type}" for field in schema)
            raise DataError(
                f"{file} has no column {column!r} of {'bytes' if column == IMAGE else 'text'}: it has {has}",
                expected="a column 'image' with the bytes of image files, and if wanted 'path' with their names",
                fix="rename the column when the file is written",
            )


def read_rows(group: RowGroup, known: Collection[str] = ()) -> Iterator[list[tuple[str, bytes]]]:
    """Yield names and images of a group, some at a time; a missing image is b"", those in `known` are left out."""
    with parquet.ParquetFile(group.file) as opened:
        columns = [name for name in (IMAGE, PATH) if name in opened.schema_arrow.names]
        row = group.first
        for batch in opened.iter_batches(_ROWS, row_groups=[group.group], columns=columns):
            images = batch.column(IMAGE).to_pylist()
            names = batch.column(PATH).to_pylist() if PATH in columns else [None] * len(images)
            found = [
                (name or f"{group.file}#{row + index}", image or b"")
                for index, (name, image) in enumerate(zip(names, images, strict=True))
            ]
            row += len(found)
            yield [pair for pair in found if pair[0] not in known]
