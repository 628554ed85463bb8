"""What a wrong input is answered with: what came, what was expected, the likely cause, what to do."""

from pathlib import Path

import pytest

from fashion import FOLDER, VIT
from vitesse.cli import main
from vitesse.data.images import decode_image
from vitesse.errors import DataError


def _said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", ["model", "images", "out"])
def test_a_wrong_path_is_named_with_what_was_expected_and_what_to_do(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    given = {"model": VIT, "images": FOLDER / "vit", "out": tmp_path / "run"}
    wrong = {"model": tmp_path / "absent.onnx", "images": tmp_path / "absent", "out": tmp_path / "taken"}
    given[kind] = wrong[kind]
    said = _said(capsys, "optimize", given["model"], "--data", given["images"], "--out", given["out"])
    assert str(wrong[kind]) in said
    assert "expected: " in said
    assert "next step: " in said


def test_a_folder_without_images_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "readme.txt").write_text("no image")
    assert "(1 file: .txt)" in _said(capsys, "optimize", VIT, "--data", tmp_path)
    (tmp_path / "more.txt").write_text("no image")
    assert "(2 files: .txt)" in _said(capsys, "optimize", VIT, "--data", tmp_path)


def test_an_image_that_is_not_there_or_a_folder_says_what_to_name(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "absent.jpg", "no image at"), (tmp_path, "/*.jpg")):
        with pytest.raises(DataError, match="next step") as caught:
            decode_image(path)
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        *(("--seconds", "0", "more than 0"), ("--seconds", "nan", "more than 0")),
        *(("--limit", "-1", "1 or more images"), ("--train-steps", "-1", "1 or more")),
        *(("--max-drop", "nan", "0 or more"), ("--max-drop", "inf", "0 or more")),
    ],
)
def test_a_number_that_measures_nothing_is_refused_before_anything_runs(
    option: str, value: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    said = _said(capsys, "optimize", VIT, "--data", FOLDER / "vit", "--out", out, option, value)
    assert f"{option} {value}" in said and expected in said
    assert not out.exists()


def test_an_image_without_area_is_refused_by_the_option_s_name(capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("0x224", "224x0", "00x00"):
        with pytest.raises(SystemExit) as ended:
            main(["optimize", str(VIT), "--data", str(FOLDER), "--size", size])
        assert ended.value.code == 2
        assert f"argument --size: '{size}' is not a size" in capsys.readouterr().err
