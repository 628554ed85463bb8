"""`vitesse export-triton`: a run as a model repository of Triton Inference Server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Write the artifact of a run as a model of a Triton repository."
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("repository", type=Path, help="the repository; the model gets a folder in it")
    parser.add_argument("--name", default="", help="of the model (default: the run folder's)")
    parser.add_argument("--batch", type=int, metavar="N", help="most items a call (default: as tuned)")
    parser.add_argument("--instances", type=int, metavar="N", help="of the model (default: as tuned)")
    parser.add_argument(
        "--delay-us",
        type=int,
        metavar="N",
        help="microseconds that a request waits for others (default: 2000)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.run import open_run
    from vitesse.serve.triton_repository import Choices, export_triton

    choices = Choices(options.name, options.batch, options.instances, options.delay_us)
    written = export_triton(open_run(options.folder), options.repository, choices)
    print(written.folder)
    for note in written.notes:
        print(f"  {note}", file=sys.stderr)
    return 0
