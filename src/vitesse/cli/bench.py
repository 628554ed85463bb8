"""`vitesse bench`: images per second at several batch sizes and numbers of streams."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.backends import TARGETS
from vitesse.cli.values import number, whole

if TYPE_CHECKING:
    from vitesse.benchmark.points import Point


def counts(text: str) -> list[int]:
    """Parse `1,8,32`: each from 1 on, rising, none twice."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of counts from 1 on; write 1,8,32")
    return sorted({int(part) for part in parts})


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Measure throughput, time of a call and memory, while the machine is watched."
    add_subject(parser)
    parser.add_argument(
        "--batch", type=counts, default=[1, 8], metavar="LIST", help="batch sizes (default: 1,8)"
    )
    parser.add_argument(
        "--streams",
        type=counts,
        default=[1, 2],
        metavar="LIST",
        help="sessions that run at once (default: 1,2)",
    )
    parser.add_argument(
        "--seconds", type=number(above=0), default=3.0, help="for each point, in three rounds (default: 3)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write every sample and the environment as JSON"
    )
    parser.set_defaults(run=run)


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add what `bench` and `tune` both take: what is measured, on what, and fed with what."""
    parser.add_argument("model", type=Path, help="a run folder, or an .onnx file")
    parser.add_argument(
        "--target",
        default="cpu",
        help=f"of {', '.join(TARGETS)} (default: cpu)",
    )
    parser.add_argument(
        "--device", type=whole(0), default=0, metavar="N", help="number of the GPU (default: 0)"
    )
    parser.add_argument("--stage", default="", help="a step of the run instead of the chosen one")
    parser.add_argument(
        "--preset", help="how to feed a foreign ONNX file: deimv2, rtdetr, detr, vit, imagenet"
    )
    parser.add_argument("--data", type=Path, metavar="IMAGES", help="images to feed (default: random ones)")
    parser.add_argument(
        "--threads",
        type=whole(0),
        default=0,
        metavar="N",
        help="CPU threads of a session (default: cores / streams)",
    )
    parser.add_argument("--no-cuda-graph", action="store_true", help="launch every kernel by itself")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 where nothing ran."""
    from rich.console import Console

    from vitesse.backends.protocol import LoadOptions
    from vitesse.benchmark.points import REFUSED, ROUNDS, bench
    from vitesse.benchmark.subject import fed_with, subject
    from vitesse.benchmark.table import print_points
    from vitesse.report.progress import progress_bar

    console, device = Console(), device_of(options)
    with (
        subject(options.model, options.target, options.stage, options.preset) as found,
        progress_bar() as progress,
    ):
        fed = fed_with(found.artifact.spec, options.data)
        progress.stage("bench", found.why, ROUNDS * len(options.batch) * len(options.streams))
        points = bench(
            found.artifact,
            fed,
            batches=options.batch,
            streams=options.streams,
            seconds=options.seconds,
            options=LoadOptions(threads=options.threads, cuda_graph=not options.no_cuda_graph),
            device=device,
            on_window=progress.advance,
        )
    notes = [f"{found.why} ({found.artifact.path.name})", fed.note, *graph_note(options, device)]
    if options.out is not None:
        _write(options, found.artifact.sha256, notes, points)
    print_points(points, console)
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    return 1 if all(point.verdict == REFUSED for point in points) else 0


def _write(
    options: argparse.Namespace, artifact_sha256: str, notes: list[str], points: Sequence[Point]
) -> None:
    from vitesse.environment import describe
    from vitesse.storage import write_atomically

    content = {
        "command": options.command_line,
        "target": options.target,
        "artifact_sha256": artifact_sha256,
        "notes": notes,
        "seconds": options.seconds,
        "environment": describe(),
        "points": [point.to_json() for point in points],
    }
    write_atomically(options.out, (json.dumps(content, allow_nan=False) + "\n").encode())


def device_of(options: argparse.Namespace) -> int | None:
    """Return the GPU's number, None for a target of the CPU."""
    from vitesse.backends import GPUS

    return options.device if options.target in GPUS else None


def graph_note(options: argparse.Namespace, device: int | None) -> list[str]:
    """Say whether calls were replayed as CUDA graphs; nothing on a CPU."""
    if device is None:
        return []
    return [
        f"CUDA graphs {'off (--no-cuda-graph)' if options.no_cuda_graph else 'on, where the runtime can'}"
    ]
