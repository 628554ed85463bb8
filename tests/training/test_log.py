"""training.csv can be read at any moment, and after a cut has every step once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitesse.errors import StorageError
from vitesse.training.log import Log, read_log


def row(step: int, **more: float | str) -> dict[str, float | str]:
    return {
        "step": step,
        "seconds": step / 2,
        "rate": 0.1,
        "loss": 3.0,
        "loss.a": 3.0,
        "gradient_norm": 1.0,
        **more,
    }


def test_a_row_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    log = Log(path := tmp_path / "run" / "training.csv", 0)
    log.write({"step": 0, "seconds": 0.0, "score": 12.5})
    log.write(row(1))
    assert path.read_text().splitlines() == [
        "step,seconds,rate,loss,loss.a,gradient_norm,score,note",
        "0,0.0,,,,,12.5,",
        "1,0.5,0.1,3.0,3.0,1.0,,",
    ]


def test_notes_are_for_readers_and_not_for_numbers(tmp_path: Path) -> None:
    log = Log(path := tmp_path / "training.csv", 0)
    log.write(row(1, note='stopped, because "x" is nan', loss=float("nan")))
    (read,) = read_log(path)
    assert "note" not in read and read["loss"] != read["loss"]


def test_rows_behind_the_step_gone_on_from_are_dropped(tmp_path: Path) -> None:
    log = Log(path := tmp_path / "training.csv", 0)
    for step in range(1, 6):
        log.write(row(step))
    log = Log(path, 3)
    log.write(row(4, score=1.0))
    assert [one["step"] for one in read_log(path)] == [1, 2, 3, 4]


def test_a_line_that_was_cut_short_is_no_row(tmp_path: Path) -> None:
    log = Log(path := tmp_path / "training.csv", 0)
    log.write(row(1))
    with path.open("a") as stream:
        stream.write("2,1.0,0.1,3.")
    assert [one["step"] for one in read_log(path)] == [1]
    Log(path, 2).write(row(3))
    assert [one["step"] for one in read_log(path)] == [1, 3]


def test_a_run_that_begins_anew_begins_a_new_log(tmp_path: Path) -> None:
    Log(path := tmp_path / "training.csv", 0).write(row(1))
    Log(path, 0)
    assert read_log(path) == ()


def test_no_log_is_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path / "training.csv") == ()


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = Log(path := tmp_path / "training.csv", 0)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*training\.csv"):
        log.write(row(1))
