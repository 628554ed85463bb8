"""`vitesse predict RUN VIDEO`: the chosen artifact on a video; the options are those of `predict`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vitesse.backends.closing import Closing
from vitesse.errors import UsageError
from vitesse.storage import storage_error
from vitesse.video import kind_of

if TYPE_CHECKING:
    from vitesse.video.predicting import Tally


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Describe what `predict` takes for videos only."""
    group = parser.add_argument_group("for a video, a camera (/dev/video0) or a stream (rtsp://…)")
    group.add_argument("--out", type=Path, metavar="FILE", help="write the video with its boxes")
    group.add_argument(
        "--jsonl",
        metavar="FILE",
        help="write one line of JSON per frame; - is the terminal, as without --out",
    )
    group.add_argument(
        "--realtime",
        action="store_true",
        help="play a file at its own speed and drop what the model is too slow for; live sources always do",
    )


def run_video(options: argparse.Namespace) -> int:
    """Run the command on one video and return its exit code."""
    from vitesse.predict import load
    from vitesse.video.predicting import check_apart, predict_video

    if options.draw is not None:
        raise UsageError("--draw takes a picture, not a video", fix="--out boxed.mp4")
    if options.jsonl not in (None, "-"):
        check_apart(options.images[0], Path(options.jsonl), "--jsonl")
    with ExitStack() as stack:
        model = stack.enter_context(load(options.folder))
        lines = _lines(options, stack)
        tally = predict_video(
            model,
            options.images[0],
            out=options.out,
            jsonl=lines,
            threshold=options.threshold,
            realtime=options.realtime,
            tell=stack.enter_context(_Teller(sys.stderr)),
        )
    print(summary(tally), file=sys.stderr)
    if options.out is not None and tally.frames:
        print(options.out)
    return 0 if tally.frames else 1


def wants_video(options: argparse.Namespace) -> bool:
    """Say whether `predict` was called for a video.

    Raises:
        UsageError: for several sources of which one is a video, or for pictures with options for videos.
    """
    videos = [source for source in options.images if kind_of(source) is not None]
    if videos and len(options.images) > 1:
        raise UsageError(
            f"{videos[0]} beside {len(options.images) - 1} more",
            expected="one video, or pictures",
            fix="call predict once per video",
        )
    only = [f"--{name}" for name in ("out", "jsonl", "realtime") if getattr(options, name)]
    if not videos and only:
        raise UsageError(
            f"{only[0]} with pictures",
            expected="a video, a camera such as /dev/video0, or rtsp://HOST/PATH",
            cause="a video whose name has another suffix",
            fix="--draw boxes.png writes a picture, --json prints what was found",
        )
    return bool(videos)


def progress_line(tally: Tally) -> str:
    """Return the line that is shown while a video runs."""
    of = f"/{tally.total}" if tally.total else ""
    left_out = [
        f"{count} {what}" for count, what in ((tally.dropped, "dropped"), (tally.damaged, "damaged")) if count
    ]
    return "  ".join([f"frame {tally.frames}{of}", f"{tally.fps:.1f} frames/s", *left_out])


def summary(tally: Tally) -> str:
    """Return what is said when a video has ended."""
    mean = tally.frames / tally.seconds if tally.seconds > 0 else 0.0
    lines = [f"{tally.frames} frames in {tally.seconds:.1f} s: {mean:.1f} frames/s"]
    if tally.interrupted:
        lines.append("  interrupted; the files are complete up to there")
    counts = (
        (tally.dropped, "dropped because the model was busy"),
        (tally.damaged, "damaged and left out"),
        (tally.reconnects, "times connected again"),
    )
    lines += [f"  {count} {what}" for count, what in counts if count]
    lines += [f"  {note}" for note in tally.notes]
    if not tally.frames:
        lines.append("  no frame could be used: no file was written")
    return "\n".join(lines)


def _lines(options: argparse.Namespace, stack: ExitStack) -> TextIO | None:
    if options.jsonl == "-" or (options.jsonl is None and (options.json or options.out is None)):
        return sys.stdout
    if options.jsonl is None:
        return None
    path = Path(options.jsonl)
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise storage_error(path, error) from error


class _Teller(Closing):
    """Writes the progress line over itself, at most ten times a second; where nobody watches it is silent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._shown = stream, 0.0

    def __call__(self, tally: Tally) -> None:
        if not self._stream.isatty() or tally.seconds - self._shown < 0.1:
            return
        self._shown = tally.seconds
        self._stream.write(f"\r{progress_line(tally)}\x1b[K")
        self._stream.flush()

    def close(self) -> None:
        """Leave the line, so that what follows begins one of its own."""
        if self._shown:
            self._stream.write("\n")
