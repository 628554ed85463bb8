import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="needs PyAV: pip install 'vitesse[video]'")

from fashion import DETR, FOLDER, artifact_of
from video.clips import number_of, one_box, pictures_of, plain, sound_of, write_clip, write_damaged
from vitesse.data.results import Result
from vitesse.errors import BackendError, UsageError
from vitesse.predict import Model
from vitesse.verify.matching import iou
from vitesse.video import predicting
from vitesse.video.predicting import Tally, in_time, predict_video
from vitesse.video.reading import Frame, Reading, Wait

SCENES = sorted((FOLDER / "detr" / "val").glob("*.jpg"))[:8]


def lines_of(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(artifact_of(DETR)) as loaded:
        yield loaded


def test_boxes_of_each_frame_are_those_of_its_picture_within_the_loss_of_the_codec(
    model: Model, tmp_path: Path
) -> None:
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in SCENES]
    clip = write_clip(tmp_path / "a.mp4", pictures)
    lines = io.StringIO()
    predict_video(model, str(clip), jsonl=lines, threshold=0.7)
    found = lines_of(lines)
    assert [line["frame"] for line in found] == list(range(len(SCENES)))
    matched = 0
    for line, picture in zip(found, pictures, strict=True):
        sure = model(picture).above(0.8)
        seen = np.array([row["box_xyxy"] for row in line["results"]], np.float32).reshape(-1, 4)
        names = [row["label"] for row in line["results"]]
        for box, name in zip(sure.boxes_xyxy, sure.names, strict=True):
            overlaps = iou(box[None], seen)[0]
            assert overlaps.max(initial=0) > 0.9, f"frame {line['frame']} lost a {name}"
            assert names[int(overlaps.argmax())] == name
            matched += 1
    assert matched >= len(SCENES), "too few boxes for the comparison to mean anything"


def test_the_written_video_has_the_boxes_order_times_and_sound_of_the_source(tmp_path: Path) -> None:
    times = [40 * number + (60 if number > 5 else 0) for number in range(12)]
    pictures = plain(12, width=256, height=192)
    clip = write_clip(tmp_path / "a.mp4", pictures, times_ms=times, sound="aac")
    lines = io.StringIO()
    tally = predict_video(one_box, str(clip), out=tmp_path / "b.mp4", jsonl=lines, threshold=0.0)
    written = pictures_of(tmp_path / "b.mp4")
    assert [round(1000 * time) for time, _ in written] == times
    assert [line["time_s"] for line in lines_of(lines)] == [time / 1000 for time in times]
    assert [line["results"][0]["score"] for line in lines_of(lines)] == [number / 100 for number in range(12)]
    assert [number_of(pixels[120:]) for _, pixels in written] == list(range(12))  # below the box
    assert all(np.ptp(pixels[:60, :60]) > 60 for _, pixels in written), "no box was drawn"
    assert sound_of(tmp_path / "b.mp4") == sound_of(clip)
    assert (tally.frames, tally.dropped, tally.damaged, tally.total) == (12, 0, 0, 12)
    assert not tally.interrupted and tally.notes == ()


def test_damaged_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    clip, lines = write_damaged(tmp_path / "a.mov", 6, damaged=[3]), io.StringIO()
    tally = predict_video(one_box, str(clip), jsonl=lines)
    assert (tally.frames, tally.damaged) == (5, 1)
    assert [line["frame"] for line in lines_of(lines)] == [0, 1, 2, 4, 5]


def failing(*given: object, **named: object) -> Result:
    raise BackendError("out of order")


@pytest.mark.parametrize("broken", ["infer", "draw", "write", "tell"])
def test_an_error_in_any_stage_is_raised_and_what_was_written_before_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    clip, calls = write_clip(tmp_path / "a.mp4", plain(12)), itertools.count()

    def after_five(do: Callable[..., object]) -> Callable[..., object]:
        def called(*given: object, **named: object) -> object:
            return (failing if next(calls) >= 5 else do)(*given, **named)

        return called

    infer, tell = one_box, lambda tally: None
    if broken == "infer":
        infer = after_five(one_box)
    elif broken == "draw":
        monkeypatch.setattr(predicting, "drawn", after_five(predicting.drawn))
    elif broken == "write":
        monkeypatch.setattr(predicting.Writer, "write", after_five(predicting.Writer.write))
    else:
        tell = after_five(tell)
    with pytest.raises(BackendError, match="out of order"):
        predict_video(infer, str(clip), out=tmp_path / "b.mp4", tell=tell)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("video")] == []
    left = [path.name for path in tmp_path.iterdir()]
    assert not [name for name in left if ".part" in name]
    if broken == "tell":  # told after the frame was written
        assert len(pictures_of(tmp_path / "b.mp4")) == 6


class Given:
    """A source of frames made here."""

    rate, time_base, audio, total = Fraction(25), Fraction(1, 1000), None, None

    def __init__(self, frames: Callable[[], Iterator[Frame]]) -> None:
        self._frames, self.reading, self.closed = frames, Reading(), False

    def frames(self, wait: Wait) -> Iterator[Frame]:
        return self._frames()

    def close(self) -> None:
        self.closed = True


def frame(number: int) -> Frame:
    return Frame(number, plain(12)[number], 40 * number, Fraction(1, 1000))


def test_an_error_of_the_source_is_raised_and_the_source_closed() -> None:
    def broken() -> Iterator[Frame]:
        yield frame(0)
        raise OSError("unplugged")

    reader = Given(broken)
    with pytest.raises(OSError, match="unplugged"):
        predict_video(one_box, "a.mp4", reader=reader)
    assert reader.closed


def test_a_live_source_drops_what_a_slow_model_cannot_take_and_counts_it(tmp_path: Path) -> None:
    taken, all_given = threading.Event(), threading.Event()

    def arriving() -> Iterator[Frame]:
        yield frame(0)
        assert taken.wait(20)
        yield from map(frame, range(1, 8))
        all_given.set()

    def slow(pixels: np.ndarray) -> Result:
        taken.set()
        assert all_given.wait(20)
        return one_box(pixels)

    lines = io.StringIO()
    tally = predict_video(slow, "/dev/video0", out=tmp_path / "a.mp4", jsonl=lines, reader=Given(arriving))
    assert [line["frame"] for line in lines_of(lines)] == [0, 7]
    assert (tally.frames, tally.dropped) == (2, 6)
    assert [round(time, 2) for time, _ in pictures_of(tmp_path / "a.mp4")] == [0.0, 0.28]


def test_a_file_without_realtime_drops_nothing_however_slow_the_model() -> None:
    lines = io.StringIO()
    tally = predict_video(one_box, "a.mp4", jsonl=lines, reader=Given(lambda: map(frame, range(12))))
    assert (tally.frames, tally.dropped) == (12, 0)


class Clock:
    """Time that passes only while somebody waits, or by hand."""

    def __init__(self) -> None:
        self.now, self.waits, self.stopped = 100.0, [], False

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(round(seconds, 3))
        self.now += seconds
        return self.stopped


def test_in_realtime_a_file_is_played_at_its_own_speed() -> None:
    clock = Clock()
    frames = (dataclasses.replace(frame(number), pts=pts) for number, pts in enumerate([500, 540, 900]))
    shown = [(one.pts, round(clock.now, 3)) for one in in_time(frames, clock, clock.wait)]
    assert shown == [(500, 100.0), (540, 100.04), (900, 100.4)]


def test_in_realtime_a_late_frame_comes_at_once_and_the_next_is_in_time_again() -> None:
    clock, shown = Clock(), []
    for one in in_time(map(frame, range(4)), clock, clock.wait):
        shown.append(round(clock.now - 100, 3))
        clock.now += 0.09 if one.number == 0 else 0.0
    assert shown == [0.0, 0.09, 0.09, 0.12]


def test_playing_ends_when_nobody_wants_more() -> None:
    clock = Clock()
    clock.stopped = True
    assert [one.number for one in in_time(map(frame, range(4)), clock, clock.wait)] == [0]


def test_the_tally_tells_speed_and_time() -> None:
    ticks, told = itertools.count(0, 0.5), []
    reader = Given(lambda: map(frame, range(4)))
    predict_video(one_box, "a.mp4", reader=reader, tell=told.append, clock=lambda: next(ticks))
    assert [tally.frames for tally in told] == [1, 2, 3, 4]
    assert [tally.fps for tally in told] == [2.0] * 4
    assert told[-1].time_s == pytest.approx(0.12)
    assert isinstance(told[-1], Tally)


def test_a_video_is_not_written_over_itself(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", plain(2))
    before = clip.read_bytes()
    with pytest.raises(UsageError, match=r"--out .*a\.mp4 is the video itself"):
        predict_video(one_box, str(clip), out=tmp_path / "." / "a.mp4")
    assert clip.read_bytes() == before


# Where the tests run in the background of a shell, signals of the terminal are ignored, and children inherit that.
INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from video.clips import one_box
from vitesse.video.predicting import predict_video

signal.signal(signal.SIGINT, signal.default_int_handler)

def slow(pixels):
    time.sleep(0.02)
    return one_box(pixels)

tally = predict_video(slow, sys.argv[1], out=Path(sys.argv[2]), jsonl=sys.stdout)
print(tally.interrupted, tally.frames, file=sys.stderr)
"""


def test_ctrl_c_completes_the_files_of_a_process_of_its_own(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", plain(12) * 100)  # 24 s of work, if nobody ends it
    tests = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(clip), str(tmp_path / "b.mp4")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tests)},
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    frames = 1 + len(out.splitlines())
    assert err.split() == ["True", str(frames)]
    assert frames < 1200
    assert len(pictures_of(tmp_path / "b.mp4")) == frames
