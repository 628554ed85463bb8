"""Small videos, made with PyAV: of pictures at given times, with sound, turned, or damaged."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vitesse.data.results import Detections

MILLISECOND = Fraction(1, 1000)
Pictures = Sequence[NDArray[np.uint8]]


def plain(count: int, *, width: int = 64, height: int = 48) -> list[NDArray[np.uint8]]:
    """Gray pictures, each lighter than the one before: the number of a frame can be read from its mean."""
    return [np.full((height, width, 3), 20 + 10 * number, np.uint8) for number in range(count)]


def number_of(pixels: NDArray[np.uint8]) -> int:
    """Return which of `plain` a picture is, after coding."""
    return round((float(pixels.mean()) - 20) / 10)


def write_clip(
    path: Path,
    pictures: Pictures,
    *,
    times_ms: Sequence[int] | None = None,
    sound: str = "",
    codec: str = "libx264",
) -> Path:
    """Write a video, 25 frames a second unless times are given; `sound` names an audio codec for half a second."""
    times = times_ms or [40 * number for number in range(len(pictures))]
    options = {"libx264": {"crf": "8"}}.get(codec, {})
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options=options)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        if codec != "png":
            video.codec_context.time_base = MILLISECOND
        track = out.add_stream(sound, rate=44100, layout="mono") if sound else None
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (
                (time // 40, Fraction(1, 25)) if codec == "png" else (time, MILLISECOND)
            )
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if track is not None:
            for packet in _tone(track):
                out.mux(packet)
    return path


def _tone(track: av.AudioStream) -> list[av.Packet]:
    packets = []
    for block in range(21):
        wave = np.sin(2 * np.pi * 440 * (np.arange(1024) + 1024 * block) / 44100)
        format_ = "s16" if "pcm" in track.codec_context.name else "fltp"
        values = (wave * 20000).astype(np.int16) if format_ == "s16" else wave.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(values[None], format=format_, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 1024 * block, Fraction(1, 44100)
        packets += track.encode(frame)
    return packets + track.encode(None)


def turn_clockwise(path: Path) -> None:
    """Say in an MP4's video track header that players must turn it by 90 degrees clockwise (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version, times and numbers, reserved, layer to volume
    one = 1 << 16
    content[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_damaged(path: Path, count: int, damaged: Sequence[int]) -> Path:
    """Write a QuickTime file of PNG pictures, of which some are overwritten with zeros."""
    write_clip(path, plain(count), codec="png")
    content = bytearray(path.read_bytes())
    starts, at = [], content.find(b"\x89PNG")
    while at >= 0:
        starts.append(at)
        at = content.find(b"\x89PNG", at + 4)
    assert len(starts) == count
    for number in damaged:
        content[starts[number] : starts[number] + 40] = bytes(40)
    path.write_bytes(content)
    return path


def pictures_of(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    """Decode a video the plain way: seconds and RGB of each frame."""
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def sound_of(path: Path) -> list[bytes]:
    """Return the encoded packets of a video's sound."""
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio)
        return [bytes(packet) for packet in packets if packet.size]


def one_box(pixels: NDArray[np.uint8]) -> Detections:
    """Stand in for a detector: one box whose score tells which of `plain` was seen."""
    score = number_of(pixels) / 100
    box = np.array([[8, 8, 40, 40]], np.float32)
    return Detections(box, np.array([score], np.float32), np.array([0]), ("thing",))
