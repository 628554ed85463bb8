"""Frames → a video file with the times they had, and the sound copied as it is where the container takes it."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.backends.closing import Closing
from vitesse.errors import UsageError
from vitesse.storage import storage_error
from vitesse.video.reading import Audio

# Those that keep a time for each frame; AVI, which only counts, is read but not written.
CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# The first that the container takes and that is built in.
_CODECS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
    "mpeg4": {"qscale": "3"},
}
_BT709 = 1  # the number of ITU-R BT.709 in colour space, primaries and transfer (ITU-T H.273)
_LIMITED = 1  # AVCOL_RANGE_MPEG
_FINEST = 65_535  # MPEG-4 Part 2 counts time in 16 bits


class Writer(Closing):
    """Writes a video; it appears under its name when it is closed, and an older one stays until then.

    Args:
        path: the suffix chooses the container.
        rate: frames per second, as a hint for players and the rate control; the frames' own times count.
        time_base: seconds per unit of the frames' times.
        audio: packets to copy, which may still be growing.

    Raises:
        UsageError: no container that can be written has that suffix.
    """

    def __init__(
        self, path: Path, *, rate: Fraction, time_base: Fraction, audio: Audio | None = None
    ) -> None:
        self._path, self._rate, self._time_base, self._audio = path, rate, time_base, audio
        # Hidden until it is whole, with the same suffix, because that names the container.
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self.notes: list[str] = []
        if path.suffix.lower() not in CONTAINERS:
            raise UsageError(
                f"no video container that can be written has the suffix of {path}",
                expected=f"one of: {', '.join(CONTAINERS)}",
                fix="--out boxed.mp4",
            )
        self._container = av.open(str(self._temporary), "w")
        self._video: av.VideoStream | None = None
        self._sound: av.AudioStream | None = None
        self._closed = False

    def write(self, pixels: NDArray[np.uint8], pts: int) -> None:
        """Append a frame: (height, width, 3) uint8 RGB, even sides; one of another size than the first is scaled to it.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        try:
            if self._video is None:
                self._video = self._begin(pixels.shape[1], pixels.shape[0])
            size = (self._video.width, self._video.height)
            if (pixels.shape[1], pixels.shape[0]) != size:
                pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            picture.colorspace, picture.color_range = _BT709, _LIMITED
            picture.pts, picture.time_base = pts, self._time_base
            self._container.mux(self._video.encode(picture))
            self._copy_sound()
        except av.FFmpegError as error:
            raise storage_error(self._path, OSError(error.errno, error.strerror)) from error

    def close(self) -> None:
        """Write what the encoder still holds and give the file its name; without any frame no file comes to be.

        Raises:
            StorageError: as `write`.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._video is not None:
                self._container.mux(self._video.encode(None))
                self._copy_sound()
            self._container.close()
            if self._video is not None:
                self._temporary.replace(self._path)
        except (av.FFmpegError, OSError) as error:
            raise storage_error(self._path, OSError(error.errno, error.strerror)) from error
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def _begin(self, width: int, height: int) -> av.VideoStream:
        video = self._with_codec()
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        context = video.codec_context
        base = self._time_base
        context.time_base = (
            base if base.denominator <= _FINEST or context.name != "mpeg4" else Fraction(1, 1000)
        )
        context.colorspace, context.color_primaries, context.color_trc = _BT709, _BT709, _BT709
        context.color_range = _LIMITED
        if self._audio is not None:
            try:
                self._sound = self._container.add_stream_from_template(self._audio.stream)
            except (ValueError, av.FFmpegError):
                codec = self._audio.stream.codec_context.name
                self.notes.append(f"the sound is not copied: {self._path.suffix} does not take {codec}")
                self._audio.wanted = False
                self._audio.packets.clear()
        self._container.start_encoding()  # opens the file: a folder that is not there is said before any work
        return video

    def _with_codec(self) -> av.VideoStream:
        for name in _CODECS:
            with contextlib.suppress(
                ValueError, av.FFmpegError
            ):  # not in this build, or not for this container
                made = self._container.add_stream(name, rate=self._rate, options=dict(_CODECS[name]))
                if isinstance(made, av.VideoStream):
                    return made
        raise UsageError(
            f"{self._path.suffix} takes none of the codecs that are here",
            expected=f"one of: {', '.join(_CODECS)}",
            cause="a build of PyAV without encoders",
            fix="pip install --force-reinstall 'vitesse[video]'",
        )

    def _copy_sound(self) -> None:
        """Write the packets that were read by now; the container puts them in order of time."""
        if self._audio is None or self._sound is None:
            return
        while self._audio.packets:
            packet = self._audio.packets.popleft()
            packet.stream = self._sound
            self._container.mux(packet)
