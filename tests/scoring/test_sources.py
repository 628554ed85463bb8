from pathlib import Path

import pytest

from vitesse.cli import main
from vitesse.errors import DataError
from vitesse.scoring.sources import find_sources


def test_a_folder_stands_for_its_images_and_its_tables(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.jpg", "notes.txt", "deep/shard.parquet"):
        (tmp_path / name).write_bytes(b"")
    found = find_sources([str(tmp_path), str(tmp_path / "b.png")])
    assert found.pictures == (tmp_path / "b.png", tmp_path / "deep" / "a.jpg")
    assert found.tables == (tmp_path / "deep" / "shard.parquet",)
    with pytest.raises(DataError, match=r"no image at .*absent"):
        find_sources([str(tmp_path / "absent")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no image in .*empty"):
        find_sources([str(tmp_path / "empty")])


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "a.png", "--replicas", "2"]) == 2
    assert "--replicas counts processes on Ray" in capsys.readouterr().err
    assert main(["predict", "run", "a.png", "--ray", "--draw", "b.png"]) == 2
    assert "--draw with --ray" in capsys.readouterr().err
