from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'vitesse[ray]'")

import pyarrow
from pyarrow import parquet

from scoring.tables import table
from vitesse.errors import DataError
from vitesse.scoring.parquet import RowGroup, read_rows, row_groups


def test_rows_of_a_table_have_the_names_it_gives_them_or_their_number(tmp_path: Path) -> None:
    named = table(tmp_path / "named.parquet", [b"1", b"2", None, b"4"], ["a.jpg", None, "c.jpg", "d.jpg"])
    groups = row_groups(named)
    assert groups == [RowGroup(named, 0, 0), RowGroup(named, 1, 3)]
    rows = [row for group in groups for batch in read_rows(group, {"d.jpg"}) for row in batch]
    assert rows == [("a.jpg", b"1"), (f"{named}#1", b"2"), ("c.jpg", b"")]
    bare = table(tmp_path / "bare.parquet", [b"1"] * 5)
    last = [row for batch in read_rows(row_groups(bare)[1]) for row in batch]
    assert [name for name, _ in last] == [f"{bare}#3", f"{bare}#4"]


def test_a_table_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.parquet"
    parquet.write_table(pyarrow.table({"image": ["not bytes"], "id": [1]}), wrong)
    with pytest.raises(DataError, match=r"no column 'image' of bytes: it has image: string, id: int64"):
        row_groups(wrong)
    parquet.write_table(pyarrow.table({"image": [b"1"], "path": [1]}), wrong)
    with pytest.raises(DataError, match="no column 'path' of text"):
        row_groups(wrong)
    wrong.write_bytes(b"no table")
    with pytest.raises(DataError, match="expected: a Parquet file"):
        row_groups(wrong)
