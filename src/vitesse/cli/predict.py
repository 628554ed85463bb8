"""`vitesse predict`: the chosen artifact on images, or on a video."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitesse.cli.values import number, whole
from vitesse.cli.video import add_video_options, run_video, wants_video
from vitesse.errors import UsageError


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument(
        "images",
        nargs="+",
        help="image files, or one video, camera or stream; with --ray folders and Parquet files too",
    )
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="write the picture with its boxes (one image only)"
    )
    parser.add_argument(
        "--threshold", type=number(least=0, most=1), default=0.5, help="lowest score shown (default: 0.5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    parser.add_argument(
        "--ray", action="store_true", help="score on Ray, a process for each core; lines go to --jsonl FILE"
    )
    parser.add_argument("--replicas", type=whole(1), metavar="N", help="with --ray: so many processes")
    add_video_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if options.ray:
        return _on_ray(options)
    if options.replicas is not None:
        raise UsageError("--replicas counts processes on Ray", fix="add --ray")
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


def _on_ray(options: argparse.Namespace) -> int:
    """Score on Ray; 2 where an image could not be read, as for a single one."""
    wrong = [f"--{name}" for name in ("draw", "out", "realtime") if getattr(options, name)]
    if wrong:
        raise UsageError(
            f"{wrong[0]} with --ray", expected="images, answered as lines of JSON", fix="--jsonl FILE"
        )
    from vitesse.scoring.on_ray import score_on_ray

    out = None if options.jsonl in (None, "-") else Path(options.jsonl)
    done = score_on_ray(
        options.folder, options.images, out, actors=options.replicas or 0, threshold=options.threshold
    )
    before = f", {done.known} were there already" if done.known else ""
    print(f"{done.answered} images, {done.failed} that cannot be read{before}", file=sys.stderr)
    return 2 if done.failed else 0
