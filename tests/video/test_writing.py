from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV: pip install 'vitesse[video]'")

import av

from video.clips import number_of, pictures_of, plain, sound_of, write_clip
from vitesse.errors import StorageError, UsageError
from vitesse.video.reading import FileReader
from vitesse.video.writing import Writer

RATE, BASE = Fraction(25), Fraction(1, 1000)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_frames_come_back_in_order_from_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with Writer(path, rate=RATE, time_base=BASE) as writer:
        for number, pixels in enumerate(plain(6)):
            writer.write(pixels, 40 * number)
    assert [number_of(pixels) for _, pixels in pictures_of(path)] == list(range(6))
    assert [round(time, 2) for time, _ in pictures_of(path)] == [0, 0.04, 0.08, 0.12, 0.16, 0.2]


def test_the_times_of_a_variable_rate_are_kept(tmp_path: Path) -> None:
    times = [100, 140, 230, 270, 600]
    with Writer(tmp_path / "a.mp4", rate=RATE, time_base=BASE) as writer:
        for time, pixels in zip(times, plain(5), strict=True):
            writer.write(pixels, time)
    assert [round(1000 * time) for time, _ in pictures_of(tmp_path / "a.mp4")] == times


def test_colours_survive_and_the_file_says_how_they_are_coded(tmp_path: Path) -> None:
    patches = np.zeros((64, 96, 3), np.uint8)
    patches[:, :32], patches[:, 32:64], patches[:, 64:] = (200, 40, 40), (40, 180, 60), (40, 60, 200)
    with Writer(tmp_path / "a.mp4", rate=RATE, time_base=BASE) as writer:
        writer.write(patches, 0)
    ((_, seen),) = pictures_of(tmp_path / "a.mp4")
    for left in (8, 40, 72):
        assert np.abs(seen[20:44, left : left + 16].astype(int) - patches[20:44, left : left + 16]).max() <= 6
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert int(container.streams.video[0].codec_context.colorspace) == 1


def test_a_frame_of_another_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mp4", rate=RATE, time_base=BASE) as writer:
        writer.write(plain(1)[0], 0)
        writer.write(plain(2, width=128, height=96)[1], 40)
    sizes = [(pixels.shape, number_of(pixels)) for _, pixels in pictures_of(tmp_path / "a.mp4")]
    assert sizes == [((48, 64, 3), 0), ((48, 64, 3), 1)]


def copied(source: Path, out: Path) -> tuple[str, ...]:
    with FileReader(str(source), with_audio=True) as reader:
        writer = Writer(out, rate=reader.rate, time_base=reader.time_base, audio=reader.audio)
        with writer:
            for frame in reader.frames(lambda seconds: False):
                writer.write(frame.pixels, frame.pts)
        assert reader.audio is not None and not reader.audio.packets, "sound was kept that nobody takes"
    return tuple(writer.notes)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_packet_for_packet(tmp_path: Path, suffix: str) -> None:
    source = write_clip(tmp_path / "in.mp4", plain(12), sound="aac")
    assert copied(source, tmp_path / f"out{suffix}") == ()
    assert sound_of(tmp_path / f"out{suffix}") == sound_of(source) != []


def test_sound_that_a_container_does_not_take_is_left_out_and_said(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", plain(12), sound="aac")
    assert copied(source, tmp_path / "out.webm") == ("the sound is not copied: .webm does not take aac",)
    assert len(pictures_of(tmp_path / "out.webm")) == 12


def test_the_file_appears_when_it_is_whole_and_an_older_one_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    writer = Writer(path, rate=RATE, time_base=BASE)
    writer.write(plain(1)[0], 0)
    assert path.read_bytes() == b"old"
    writer.close()
    writer.close()
    assert len(pictures_of(path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    Writer(tmp_path / "a.mp4", rate=RATE, time_base=BASE).close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_and_an_absent_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no video container that can be written has the suffix of .*a\.xyz"
    ):
        Writer(tmp_path / "a.xyz", rate=RATE, time_base=BASE)
    with pytest.raises(StorageError, match=r"cannot write .*absent"):
        Writer(tmp_path / "absent" / "a.mp4", rate=RATE, time_base=BASE).write(plain(1)[0], 0)
