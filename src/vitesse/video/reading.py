"""Frames of a file, a camera or a stream: upright RGB with number and time; what is damaged is left out and counted."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
from av.container import InputContainer

from vitesse.backends.closing import Closing
from vitesse.data.images import MAX_PIXELS, Pixels
from vitesse.errors import DataError, UsageError
from vitesse.video import SourceKind, kind_of, without_password

if TYPE_CHECKING:
    Packet = av.Packet[Any]  # generic for type checkers only

# Waits up to so many seconds; True as soon as nobody wants more frames.
Wait = Callable[[float], bool]

# Containers that hold a video themselves. FFmpeg goes by content, not by name, and a playlist named .mp4 would make it
# open other files and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc"
_FILE_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_STREAM_OPTIONS = {"rtsp_transport": "tcp", "fflags": "nobuffer"}
_TIMEOUT_S = (10.0, 10.0)  # to open, and to read, before a live source counts as lost
_LIVE_TIME_BASE = Fraction(1, 1000)


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Args:
        number: from 0, counting also those that were damaged or dropped.
        pixels: (height, width, 3) uint8 RGB, turned as the video's metadata say.
        pts: when it is shown, in units of `time_base` seconds; strictly rising.
    """

    number: int
    pixels: Pixels
    pts: int
    time_base: Fraction

    @property
    def time_s(self) -> float:
        """When it is shown, in seconds of the video's own clock (live: since the first frame)."""
        return float(self.pts * self.time_base)


@dataclass
class Audio:
    """The sound of a file, still encoded: its stream, and the packets read so far that nobody has taken.

    `wanted` is set to False by who cannot use them, so that no more are kept.
    """

    stream: av.AudioStream
    packets: deque[Packet] = field(default_factory=deque)
    wanted: bool = True


@dataclass
class Reading:
    """What happened so far: frames left out as damaged, connections made again, and remarks for the user."""

    damaged: int = 0
    reconnects: int = 0
    notes: list[str] = field(default_factory=list)


class Reader(Protocol):
    """A source that is open. `frames` may be walked once, by one thread; `close` when no thread uses it any more.

    rate: frames per second as the source states it; time_base: of all frames; total: number of frames, None if unknown.
    audio: to be copied, None where there is none.
    """

    rate: Fraction
    time_base: Fraction
    total: int | None
    audio: Audio | None
    reading: Reading

    def frames(self, wait: Wait) -> Iterator[Frame]:
        """Yield the frames in the order in which they are shown."""
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...


def open_reader(source: str, *, with_audio: bool = False) -> Reader:
    """Open a video by what its text says it is (`kind_of`).

    Raises:
        UsageError: the text names no video. DataError: it is absent, unreachable, damaged, or without pictures.
    """
    kind = kind_of(source)
    if kind is None:
        raise UsageError(
            f"{without_password(source)} names no video",
            expected="a file such as clip.mp4, a camera such as /dev/video0, or rtsp://HOST/PATH",
        )
    return LiveReader(source, kind) if kind.live else FileReader(source, with_audio=with_audio)


class FileReader(Closing):
    """A video file."""

    def __init__(self, path: str, *, with_audio: bool = False) -> None:
        self._path, self.reading = path, Reading()
        try:
            self._container = av.open(path, options=dict(_FILE_OPTIONS))
        except FileNotFoundError as error:
            raise DataError(f"no video at {path}", cause="a typing error, or the file was moved") from error
        except av.FFmpegError as error:
            raise _unreadable(path, error) from error
        try:
            stream = _video_stream(self._container, path)
        except DataError:
            self._container.close()
            raise
        # Never "FRAME": a damaged packet would then take sound frames with it, which PyAV had collected already.
        stream.thread_type = "SLICE"
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.time_base = stream.time_base or 1 / self.rate
        self.total = stream.frames or _estimated(self._container, self.rate)
        sounds = self._container.streams.audio
        self.audio = Audio(sounds[0]) if with_audio and sounds else None
        if self.audio is not None and len(sounds) > 1:
            self.reading.notes.append(f"of {len(sounds)} audio tracks the first is kept")

    def frames(self, wait: Wait) -> Iterator[Frame]:
        """Yield the frames; `wait` is not needed, as a file always has the next one."""
        clock = _Presentation(self.time_base, self.rate)
        decoded = 0
        for picture in self._decoded():
            number, decoded = decoded + self.reading.damaged, decoded + 1
            yield Frame(number, upright(picture, self._path), clock.next(picture.pts), self.time_base)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        video = self._container.streams.video[0]
        wanted = [video] if self.audio is None else [video, self.audio.stream]
        try:
            for packet in self._container.demux(wanted):
                if isinstance(packet.stream, av.VideoStream):
                    yield from _sound_frames(packet, self.reading)
                elif self.audio is not None and self.audio.wanted and packet.dts is not None:
                    self.audio.packets.append(packet)
        except av.FFmpegError as error:
            self.reading.notes.append(f"{self._path} cannot be read to its end: {error.strerror}")

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class LiveReader(Closing):
    """A camera or a network stream; a lost one is opened again, with longer and longer waits between the attempts.

    Time is that of arrival, because a source's own clock starts anew after each loss.

    Args:
        connect: opens the source; raises an error of FFmpeg.
        attempts: without any frame in between, before it is given up; the n-th follows a wait of 2^(n-1) s, at most
            30 s.
    """

    audio: Audio | None = None
    total: int | None = None
    time_base = _LIVE_TIME_BASE

    def __init__(
        self,
        source: str,
        kind: SourceKind,
        *,
        connect: Callable[[str, SourceKind], InputContainer] | None = None,
        clock: Callable[[], float] = time.monotonic,
        attempts: int = 8,
    ) -> None:
        self._source, self._kind, self._connect = source, kind, connect or _connect
        self._clock, self._attempts = clock, attempts
        self._name, self.reading = without_password(source), Reading()
        try:
            self._container: InputContainer | None = self._connect(source, kind)
        except av.FFmpegError as error:
            raise self._unreachable(str(error.strerror)) from error
        try:
            self.rate = _video_stream(self._container, self._name).average_rate or Fraction(25)
        except DataError:
            self._container.close()
            raise

    def frames(self, wait: Wait) -> Iterator[Frame]:
        """Yield frames until `wait` says that no more are wanted.

        Raises:
            DataError: the source was lost and did not come back.
        """
        began, clock, decoded, failures = self._clock(), _Presentation(self.time_base, self.rate), 0, 0
        while True:
            why = "it ended"
            try:
                container = self._container or self._connect(self._source, self._kind)
                if self._container is None:
                    self._container, self.reading.reconnects = container, self.reading.reconnects + 1
                for picture in _all_sound(container, self.reading):
                    number, decoded, failures = decoded + self.reading.damaged, decoded + 1, 0
                    arrived = round((self._clock() - began) / self.time_base)
                    yield Frame(
                        number, upright(picture, self._name), clock.next(int(arrived)), self.time_base
                    )
            except av.FFmpegError as error:
                why = str(error.strerror)
            self.close()
            failures += 1
            if failures > self._attempts:
                raise self._unreachable(why, f"; {self._attempts} attempts failed")
            if wait(min(2.0 ** (failures - 1), 30.0)):
                return

    def close(self) -> None:
        """Close the connection."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _unreachable(self, why: str, tried: str = "") -> DataError:
        return DataError(
            f"no video from {self._name}: {why}{tried}",
            expected="a camera or stream that sends pictures",
            cause="a wrong address or password, a source that is off, or one that somebody else uses",
            fix="try the address in a player first",
        )


def upright(picture: av.VideoFrame, name: str = "the video") -> Pixels:
    """Return a decoded frame as (height, width, 3) uint8 RGB, turned by its display matrix.

    Raises:
        DataError: it has more pixels than a picture may have.
    """
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(
            f"{name} has frames of {picture.width}×{picture.height} pixels",
            expected=f"at most {MAX_PIXELS} pixels",
            fix="scale the video down",
        )
    turns = round(picture.rotation / 90)  # counterclockwise, as np.rot90 counts
    pixels: Pixels = np.rot90(picture.to_ndarray(format="rgb24"), turns).astype(np.uint8, copy=False)
    return np.ascontiguousarray(pixels)


class _Presentation:
    """Times in units of the time base: strictly rising, made up from the rate where the file has none."""

    def __init__(self, time_base: Fraction, rate: Fraction) -> None:
        self._step = max(1, round(1 / (rate * time_base)))
        self._last: int | None = None

    def next(self, pts: int | None) -> int:
        """Return the time of the next frame, its own where that can be."""
        if self._last is None:
            self._last = pts or 0
        elif pts is None:
            self._last += self._step
        else:
            self._last = max(pts, self._last + 1)
        return self._last


def _connect(source: str, kind: SourceKind) -> InputContainer:
    if kind is SourceKind.CAMERA:
        return av.open(source, format="v4l2", timeout=_TIMEOUT_S)
    return av.open(source, options=dict(_STREAM_OPTIONS), timeout=_TIMEOUT_S)


def _all_sound(container: InputContainer, reading: Reading) -> Iterator[av.VideoFrame]:
    for packet in container.demux(container.streams.video[0]):
        yield from _sound_frames(packet, reading)


def _sound_frames(packet: Packet, reading: Reading) -> Iterator[av.VideoFrame]:
    """The frames that a packet completes; damaged ones are counted, also those that the decoder patched up."""
    try:
        pictures = packet.decode()
    except av.error.InvalidDataError:
        reading.damaged += 1
        return
    for picture in pictures:
        if not isinstance(picture, av.VideoFrame):
            continue
        if picture.is_corrupt:
            reading.damaged += 1
        else:
            yield picture


def _video_stream(container: InputContainer, name: str) -> av.VideoStream:
    streams = container.streams.video
    if not streams:
        raise DataError(
            f"{name} has no pictures",
            expected="a video track",
            cause="a recording of sound alone" if container.streams.audio else "",
        )
    return streams[0]


def _estimated(container: InputContainer, rate: Fraction) -> int | None:
    if not container.duration:
        return None
    return math.ceil(container.duration / av.time_base * rate)


def _unreadable(path: str, error: av.FFmpegError) -> DataError:
    return DataError(
        f"{path} cannot be read as a video: {error.strerror}",
        expected="MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV or Ogg",
        cause="another kind of file under this name, or a recording that was cut off",
        fix="try it in a player; play lists and addresses other than rtsp:// are not followed",
    )
