"""`vitesse predict`: the chosen artifact on images, or on a video."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitesse.cli.video import add_video_options, run_video, wants_video
from vitesse.errors import UsageError


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("images", nargs="+", help="image files, or one video, camera or stream")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="write the picture with its boxes (one image only)"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score shown (default: 0.5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    add_video_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if wants_video(options):
        return run_video(options)
    from vitesse.predict import load, save_picture, show

    if options.draw is not None and len(options.images) > 1:
        raise UsageError(
            "--draw takes one image", expected="one image file", fix="call predict once per image"
        )
    with load(options.folder) as model:
        for path in map(Path, options.images):
            result = model(path)
            print(show(result, path, threshold=options.threshold, as_json=options.json))
            if options.draw is not None:
                save_picture(result.draw(path), options.draw)
    return 0
