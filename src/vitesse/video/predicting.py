"""A video through a model: decode, infer, draw and encode at the same time."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from vitesse.data.images import Pixels
from vitesse.data.results import Result
from vitesse.errors import UsageError
from vitesse.predict import rows_of
from vitesse.video import kind_of, without_password
from vitesse.video.drawing import drawn
from vitesse.video.overlap import Overlap
from vitesse.video.reading import Frame, Reader, Wait, open_reader
from vitesse.video.writing import Writer

Infer = Callable[[Pixels], Result]
_RECENT = 30  # frames that the speed shown is taken over


@dataclass(frozen=True)
class Tally:
    """How far a video is.

    Args:
        frames: finished; dropped: left out, because the model was busy; damaged: left out as unreadable.
        total: frames of the whole video, where it says so.
        fps: finished frames per second, of the last 30.
        time_s: of the last finished frame, on the video's clock; seconds: spent so far.
        reconnects: how often a live source came back.
        interrupted: ended by Ctrl-C; notes: remarks for the user.
    """

    frames: int = 0
    dropped: int = 0
    damaged: int = 0
    total: int | None = None
    fps: float = 0.0
    time_s: float = 0.0
    seconds: float = 0.0
    reconnects: int = 0
    interrupted: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A frame on its way: what was found, and the picture of it."""

    frame: Frame
    result: Result | None = None
    picture: NDArray[np.uint8] | None = None


def predict_video(
    infer: Infer,
    source: str,
    *,
    out: Path | None = None,
    jsonl: TextIO | None = None,
    threshold: float = 0.5,
    realtime: bool = False,
    tell: Callable[[Tally], None] = lambda tally: None,
    clock: Callable[[], float] = time.monotonic,
    reader: Reader | None = None,
) -> Tally:
    """Run a model on every frame of a video, and write the video with boxes, the boxes as JSON lines, or both.

    Frames come out in their order, with their times. Ctrl-C ends the video early and completes the files.

    Args:
        infer: is called with (height, width, 3) uint8 RGB, from one thread; such as a `vitesse.load`ed model.
        source: a file, a camera such as /dev/video0, or rtsp://HOST/PATH.
        out: the video to write; jsonl: gets one line a frame: `frame`, `time_s` and `results`.
        threshold: lowest score of a box that is drawn and written.
        realtime: a file is played at its own speed, and what the model is too slow for is dropped, the oldest waiting
            frame first, so that what is shown is never late. Live sources are always taken so.
        tell: hears of each finished frame, on a thread of its own.
        reader: an open source in place of `source`; it is closed.

    Raises:
        UsageError, DataError, StorageError: the source or `out` cannot be used; whatever `infer` raises. Both files
            then hold the frames before the error.
    """
    kind = kind_of(source)
    if out is not None:
        check_apart(source, out, "--out")
    with ExitStack() as stack:
        opened = reader or open_reader(source, with_audio=out is not None)
        stack.callback(opened.close)
        writer = None
        if out is not None:
            writer = Writer(out, rate=opened.rate, time_base=opened.time_base, audio=opened.audio)
            stack.enter_context(writer)
        live = kind is not None and kind.live
        passage = _Passage(infer, opened, writer, jsonl, threshold, tell, clock)
        tally = passage.run(dropping=realtime or live, paced=realtime and not live)
        if writer is not None:
            writer.close()
        notes = (*tally.notes, *opened.reading.notes, *(writer.notes if writer is not None else ()))
        return replace(tally, notes=notes)


@dataclass
class _Passage:
    """One video on its way; the functions below run on threads of their own, each one at a time."""

    infer: Infer
    reader: Reader
    writer: Writer | None
    jsonl: TextIO | None
    threshold: float
    tell: Callable[[Tally], None]
    clock: Callable[[], float]
    tally: Tally = field(default_factory=Tally)
    dropped: int = 0
    began: float = 0.0
    finished_at: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT + 1))

    def run(self, *, dropping: bool, paced: bool) -> Tally:
        """Work until the source ends; return the last tally."""
        self.began = self.clock()
        self.finished_at.append(self.began)
        stages: list[tuple[str, Callable[[Scene], Scene]]] = [("inference", self._infer)]
        if self.writer is not None:
            stages.append(("drawing", self._draw))
        stages.append(("writing", self._write))
        overlap = Overlap(stages, dropped=self._drop if dropping else None)
        wait = overlap.stopping.wait
        frames = self.reader.frames(wait)
        finished = overlap.run(_scenes(in_time(frames, self.clock, wait) if paced else frames))
        return replace(self._counted(), seconds=self.clock() - self.began, interrupted=not finished)

    def _infer(self, scene: Scene) -> Scene:
        return replace(scene, result=self.infer(scene.frame.pixels))

    def _draw(self, scene: Scene) -> Scene:
        assert scene.result is not None
        return replace(scene, picture=drawn(scene.frame.pixels, scene.result, threshold=self.threshold))

    def _write(self, scene: Scene) -> Scene:
        assert scene.result is not None
        if self.writer is not None and scene.picture is not None:
            self.writer.write(scene.picture, scene.frame.pts)
        if self.jsonl is not None:
            self.jsonl.write(line_of(scene.frame, scene.result, self.threshold))
            self.jsonl.flush()  # who follows a camera reads the line now
        self._finish(scene.frame)
        return scene

    def _finish(self, frame: Frame) -> None:
        self.finished_at.append(self.clock())
        taken = self.finished_at[-1] - self.finished_at[0]
        self.tally = replace(
            self._counted(),
            frames=self.tally.frames + 1,
            fps=(len(self.finished_at) - 1) / taken if taken > 0 else 0.0,
            time_s=frame.time_s,
            seconds=self.finished_at[-1] - self.began,
        )
        self.tell(self.tally)

    def _drop(self, scene: Scene) -> None:
        self.dropped += 1

    def _counted(self) -> Tally:
        reading = self.reader.reading
        return replace(
            self.tally,
            dropped=self.dropped,
            damaged=reading.damaged,
            reconnects=reading.reconnects,
            total=self.reader.total,
        )


def line_of(frame: Frame, result: Result, threshold: float) -> str:
    """Return a frame's line of JSON, with its end."""
    found = {"frame": frame.number, "time_s": round(frame.time_s, 6), "results": rows_of(result, threshold)}
    return json.dumps(found) + "\n"


def in_time(frames: Iterator[Frame], clock: Callable[[], float], wait: Wait) -> Iterator[Frame]:
    """Yield each frame when it is due, as a camera would; a frame that is due already comes at once."""
    began: float | None = None
    for frame in frames:
        if began is None:
            began = clock() - frame.time_s
        ahead = began + frame.time_s - clock()
        if ahead > 0 and wait(ahead):
            return
        yield frame


def _scenes(frames: Iterator[Frame]) -> Iterator[Scene]:
    for frame in frames:
        yield Scene(frame)


def check_apart(source: str, written: Path, option: str) -> None:
    """Raise UsageError where `written`, given by `option`, is the video that is read."""
    if written.exists() and Path(source).exists() and written.samefile(source):
        raise UsageError(
            f"{option} {written} is the video itself, {without_password(source)}",
            expected="another file",
            fix=f"{option} {written.with_stem(written.stem + '-boxed')}",
        )
