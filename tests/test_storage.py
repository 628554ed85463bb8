import errno
from pathlib import Path

import pytest

from vitesse.errors import StorageError
from vitesse.storage import storage_error, write_atomically


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["ledger.json"]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        StorageError, match=r"(?s)cannot write .*ledger\.json.*the disk is full.*finished steps are kept"
    ):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.json"]


def test_a_really_full_disk_is_named() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as stream:
        stream.write(b"x")
    assert "the disk is full" in str(storage_error(Path("x"), caught.value))


def test_a_file_where_a_folder_is_needed_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="--out"):
        write_atomically(tmp_path / "run" / "ledger.json", b"")
