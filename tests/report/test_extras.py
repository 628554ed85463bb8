import json

import pytest

from report.sample import sample_extras, scene
from vitesse.errors import RunFolderError, StorageError
from vitesse.report.extras import FILE, Picture, ReportExtras, load_extras, save_extras


def test_extras_come_back_from_the_run_folder_as_they_were_saved(tmp_path):
    assert save_extras(tmp_path, sample_extras()) == tmp_path / FILE
    assert load_extras(tmp_path) == sample_extras()
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["01-after.png", "01-before.png", "02-after.png", "02-before.png"]


def test_a_run_from_before_there_was_a_profile_by_module_is_still_read(tmp_path):
    save_extras(tmp_path, sample_extras())
    raw = json.loads((tmp_path / FILE).read_text())
    del raw["modules"], raw["modules_note"]
    (tmp_path / FILE).write_text(json.dumps(raw))
    found = load_extras(tmp_path)
    assert found.modules == ()
    assert found.modules_note == ""
    assert found.operators == sample_extras().operators


def test_jpeg_bytes_get_a_jpeg_name(tmp_path):
    save_extras(tmp_path, ReportExtras(pictures=(Picture("x", b"\xff\xd8\xff", scene(())),)))
    assert (tmp_path / "pictures" / "01-before.jpg").read_bytes() == b"\xff\xd8\xff"


def test_a_run_without_extras_says_why_sections_are_empty(tmp_path):
    extras = load_extras(tmp_path)
    assert extras.pictures == ()
    assert "interrupted" in extras.pictures_note
    assert "interrupted" in extras.operators_note


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}', "null"])
def test_damaged_data_is_named_with_the_next_step(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(RunFolderError) as caught:
        load_extras(tmp_path)
    assert "cannot read the report's data" in caught.value.what
    assert "JSON of schema 1" in caught.value.expected
    assert "delete" in caught.value.fix


def test_a_picture_that_is_gone_is_named(tmp_path):
    save_extras(tmp_path, sample_extras())
    (tmp_path / "pictures" / "02-after.png").unlink()
    with pytest.raises(RunFolderError, match=r"02-after\.png"):
        load_extras(tmp_path)


def test_a_picture_outside_the_run_is_refused(tmp_path):
    run = tmp_path / "run"
    save_extras(run, sample_extras())
    (tmp_path / "secret.png").write_bytes(scene(()))
    raw = json.loads((run / FILE).read_text())
    raw["pictures"][0]["before"] = "pictures/../../secret.png"
    (run / FILE).write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match="lies outside pictures/"):
        load_extras(run)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        save_extras(tmp_path / "run", sample_extras())
