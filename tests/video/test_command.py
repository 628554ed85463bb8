import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV: pip install 'vitesse[video]'")

import vitesse.predict
from video.clips import one_box, pictures_of, plain, write_clip
from vitesse.cli import main
from vitesse.cli.video import progress_line, summary
from vitesse.video.predicting import Tally


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command load a stand-in for a run's model."""

    @contextmanager
    def load(folder: Path):
        yield one_box

    monkeypatch.setattr(vitesse.predict, "load", load)


@pytest.mark.usefixtures("stand_in")
def test_the_command_writes_the_video_and_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "a.mp4", plain(5))
    out, lines = tmp_path / "b.mp4", tmp_path / "b.jsonl"
    assert main(["predict", "run", str(clip), "--out", str(out), "--jsonl", str(lines)]) == 0
    assert len(pictures_of(out)) == 5
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == list(range(5))
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert said.err.startswith("5 frames in ")


@pytest.mark.usefixtures("stand_in")
def test_without_a_file_to_write_the_lines_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "a.mp4", plain(3))
    assert main(["predict", "run", str(clip), "--threshold", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["results"][0]["label"] for row in rows] == ["thing"] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.mp4", "b.jpg"], "a.mp4 beside 1 more"),
        (["b.jpg", "--out", "c.mp4"], "--out with pictures"),
        (["b.jpg", "--realtime"], "--realtime with pictures"),
        (["a.mp4", "--draw", "c.png"], "--draw takes a picture"),
    ],
)
def test_options_that_do_not_fit_the_source_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "run", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("stand_in")
def test_the_lines_are_not_written_over_the_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "a.mp4", plain(3))
    assert main(["predict", "run", str(clip), "--jsonl", str(clip)]) == 2
    assert "--jsonl" in capsys.readouterr().err
    assert len(pictures_of(clip)) == 3


def test_what_was_left_out_is_said_while_it_runs_and_at_the_end() -> None:
    tally = Tally(
        frames=30, dropped=4, damaged=1, total=90, fps=12.34, seconds=2.0, reconnects=2, interrupted=True,
        notes=("the sound is not copied: .webm does not take aac",),
    )  # fmt: skip
    assert progress_line(tally) == "frame 30/90  12.3 frames/s  4 dropped  1 damaged"
    assert summary(tally).splitlines() == [
        "30 frames in 2.0 s: 15.0 frames/s",
        "  interrupted; the files are complete up to there",
        "  4 dropped because the model was busy",
        "  1 damaged and left out",
        "  2 times connected again",
        "  the sound is not copied: .webm does not take aac",
    ]
    assert "no frame could be used" in summary(Tally())


def test_a_missing_pyav_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("vitesse.video.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["predict", "run", "a.mp4"]) == 3
    assert "pip install 'vitesse[video]'" in capsys.readouterr().err


def test_the_help_has_the_options_of_videos_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    said = capsys.readouterr().out
    assert all(option in said for option in ("--out", "--jsonl", "--realtime", "rtsp://"))
