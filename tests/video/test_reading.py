import itertools
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV: pip install 'vitesse[video]'")

import av

from video.clips import number_of, plain, turn_clockwise, write_clip, write_damaged
from vitesse.errors import DataError, UsageError
from vitesse.video import SourceKind, kind_of, without_password
from vitesse.video.reading import FileReader, LiveReader, _Presentation, open_reader


def never(seconds: float) -> bool:
    return False


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("clip.MP4", SourceKind.FILE),
        ("a/b.webm", SourceKind.FILE),
        ("/dev/video0", SourceKind.CAMERA),
        ("rtsp://host/a.jpg", SourceKind.STREAM),
        ("RTSPS://host/a", SourceKind.STREAM),
        ("photo.jpg", None),
        ("still.gif", None),
        ("http://host/clip", None),
    ],
)
def test_what_a_source_is_follows_from_its_text(source: str, kind: SourceKind | None) -> None:
    assert kind_of(source) is kind


def test_a_password_is_never_shown() -> None:
    assert without_password("rtsp://me:s3cret@cam:554/live?x=1") == "rtsp://***@cam:554/live?x=1"
    assert without_password("rtsp://cam/live") == "rtsp://cam/live"
    assert without_password("a@b.mp4") == "a@b.mp4"


def test_frames_have_their_order_number_and_time_also_at_a_variable_rate(tmp_path: Path) -> None:
    times = [0, 40, 130, 170, 500]
    path = write_clip(tmp_path / "a.mp4", plain(5), times_ms=times)
    with FileReader(str(path)) as reader:
        frames = list(reader.frames(never))
        assert reader.total == 5
    assert [frame.number for frame in frames] == list(range(5))
    assert [number_of(frame.pixels) for frame in frames] == list(range(5))
    assert [round(1000 * frame.time_s) for frame in frames] == times
    assert frames[0].pixels.dtype == np.uint8 and frames[0].pixels.shape == (48, 64, 3)


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    half = np.zeros((48, 64, 3), np.uint8)
    half[:, :32] = 255  # the left half is white; turned clockwise it is the upper one
    path = write_clip(tmp_path / "a.mp4", [half] * 3)
    with FileReader(str(path)) as reader:
        lying = next(reader.frames(never)).pixels
    turn_clockwise(path)
    with FileReader(str(path)) as reader:
        standing = next(reader.frames(never)).pixels
    assert lying.shape == (48, 64, 3) and lying[:, :20].mean() > 240
    assert standing.shape == (64, 48, 3)
    assert standing[:20].mean() > 240 and standing[44:].mean() < 15


def test_a_damaged_frame_is_left_out_and_counted_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    path = write_damaged(tmp_path / "a.mov", 6, damaged=[2, 4])
    with FileReader(str(path)) as reader:
        frames = list(reader.frames(never))
        assert reader.reading.damaged == 2
    assert [frame.number for frame in frames] == [0, 1, 3, 5]
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 3, 5]


def test_a_whole_video_has_no_damaged_frame(tmp_path: Path) -> None:
    with FileReader(str(write_damaged(tmp_path / "a.mov", 3, damaged=[]))) as reader:
        assert len(list(reader.frames(never))) == 3
        assert reader.reading.damaged == 0


def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no video at .*absent\.mp4"):
        open_reader(str(tmp_path / "absent.mp4"))
    (tmp_path / "text.mp4").write_text("hello" * 100)
    with pytest.raises(DataError, match=r"text\.mp4 cannot be read as a video: Invalid data"):
        open_reader(str(tmp_path / "text.mp4"))
    with pytest.raises(UsageError, match=r"photo\.jpg names no video"):
        open_reader("photo.jpg")


def test_a_file_of_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        track = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(track.encode(frame))
    with pytest.raises(DataError, match="has no pictures"):
        FileReader(str(path))


def test_a_play_list_under_the_name_of_a_video_opens_no_other_file(tmp_path: Path) -> None:
    inner = write_clip(tmp_path / "inner.mp4", plain(2))
    listing = tmp_path / "list.mp4"
    listing.write_text(f"ffconcat version 1.0\nfile '{inner.name}'\n")
    with av.open(str(listing)) as container:  # without the list of formats it would be followed
        assert container.format.name == "concat"
    with pytest.raises(DataError, match="play lists"):
        FileReader(str(listing))


def test_times_that_are_missing_or_go_back_become_rising_ones() -> None:
    clock = _Presentation(Fraction(1, 1000), Fraction(25))
    assert [clock.next(pts) for pts in (None, None, 100, 90, 90, 200)] == [0, 40, 100, 101, 102, 200]


class Camera:
    """Opens clips, or fails, in a given order; a clip's end is a lost connection."""

    def __init__(self, plan: list[Path | None]) -> None:
        self.plan, self.waits, self.now = plan, [], itertools.count(0, 0.04)

    def __call__(self, source: str, kind: SourceKind) -> av.container.InputContainer:
        path = self.plan.pop(0)
        if path is None:
            raise av.error.ConnectionRefusedError(111, "Connection refused", source)
        return av.open(str(path))

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return False

    def clock(self) -> float:
        return next(self.now)


def test_a_lost_stream_is_opened_again_with_growing_waits_and_its_time_goes_on(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", plain(3))
    camera = Camera([clip, None, None, clip, *[None] * 3])
    reader = LiveReader(
        "rtsp://me:pw@cam/x", SourceKind.STREAM, connect=camera, clock=camera.clock, attempts=3
    )
    frames = []
    with pytest.raises(
        DataError, match=r"no video from rtsp://\*\*\*@cam/x: Connection refused; 3 attempts"
    ) as told:
        frames += iter_into(frames, reader, camera.wait)
    assert "pw" not in str(told.value)
    assert [frame.number for frame in frames] == list(range(6))
    assert all(later.pts > earlier.pts for earlier, later in itertools.pairwise(frames))
    assert camera.waits == [1, 2, 4, 1, 2, 4]
    assert reader.reading.reconnects == 1


def iter_into(frames: list, reader: LiveReader, wait: Callable[[float], bool]) -> list:
    for frame in reader.frames(wait):
        frames.append(frame)
    return []


def test_a_stream_that_nobody_wants_any_more_is_not_opened_again(tmp_path: Path) -> None:
    camera = Camera([write_clip(tmp_path / "a.mp4", plain(2))])
    reader = LiveReader("/dev/video0", SourceKind.CAMERA, connect=camera, clock=camera.clock)
    stopping = threading.Event()
    stopping.set()
    assert len(list(reader.frames(stopping.wait))) == 2


def test_a_wrong_address_is_said_at_once_and_not_tried_again() -> None:
    camera = Camera([None])
    with pytest.raises(DataError, match=r"no video from /dev/video9: Connection refused"):
        LiveReader("/dev/video9", SourceKind.CAMERA, connect=camera)
    assert not camera.plan
