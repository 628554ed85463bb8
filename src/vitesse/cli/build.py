"""`vitesse build`: the graph of a run, or an ONNX file, as engines for GPUs."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.backends import GPUS
from vitesse.cli.values import batch_range, bytes_of
from vitesse.errors import UsageError

if TYPE_CHECKING:
    from vitesse.engines import EngineRow
    from vitesse.progress import Progress


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Build engines from a finished run: its FP16 graph where it has one. With tensorrt-rtx that needs no GPU: name "
        "the compute capabilities, as in --target tensorrt-rtx:sm75,sm86,sm89,sm120."
    )
    parser.add_argument("subject", type=Path, metavar="RUN", help="a run folder, or an .onnx file")
    parser.add_argument(
        "--target", required=True, help=f"of {', '.join(GPUS)}; tensorrt-rtx:sm86,… makes one engine for each"
    )
    parser.add_argument("--stage", default="", help="build this step of the run (see `vitesse report RUN`)")
    parser.add_argument(
        "--batch",
        type=batch_range,
        metavar="RANGE",
        help="batch sizes: MIN..MAX, MIN..OPT..MAX or one (default: 1..1..8, best at 1)",
    )
    parser.add_argument(
        "--shapes",
        default="",
        metavar="PROFILES",
        help="shapes instead, as images=1x3x480x640..8x3x800x1333..16x3x1333x1333; a semicolon between profiles",
    )
    parser.add_argument(
        "--workspace",
        type=bytes_of,
        default=0,
        metavar="SIZE",
        help="scratch memory for one layer, as 4GiB (default: all there is)",
    )
    parser.add_argument(
        "--level", type=int, choices=range(6), metavar="N", help="effort, 0 to 5 (default: the library's own)"
    )
    parser.add_argument(
        "--version-compatible", action="store_true", help="also for later versions of the same major release"
    )
    parser.add_argument("--rebuild", action="store_true", help="build also what is there already")
    parser.add_argument("--verbose", action="store_true", help="print everything the builder says")
    file = parser.add_argument_group("an .onnx file")
    file.add_argument("--preset", help="how to feed it: deimv2, rtdetr, detr, vit, imagenet")
    file.add_argument("--spec", type=Path, metavar="TOML", help="the same, in a file")
    file.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for the engines (default: NAME.engines beside the file)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 where an engine could not be built."""
    from vitesse.engines import parse_target
    from vitesse.report.progress import progress_bar

    target, capabilities = parse_target(options.target)
    with progress_bar() as progress:
        rows = _rows(options, target, capabilities, progress)
    for row in rows:
        print("\n".join(_said(row)))
    return int(any(row.artifact is None for row in rows))


def _rows(
    options: argparse.Namespace, target: str, capabilities: tuple[str, ...], progress: Progress
) -> tuple[EngineRow, ...]:
    from vitesse.backends.tensorrt.options import BuildOptions
    from vitesse.engines import BATCH, ENGINES, Order, build_engines, build_file
    from vitesse.run import open_run

    built = BuildOptions(
        workspace_bytes=options.workspace,
        level=options.level,
        compute_capabilities=capabilities,
        version_compatible=options.version_compatible,
        verbose=options.verbose,
    )
    command = shlex.join(options.command_line)
    batch = options.batch or BATCH
    if options.subject.is_dir():
        _refuse(options, ("preset", "spec", "out"), "a run folder: they are for an .onnx file")
        return build_engines(
            open_run(options.subject),
            target,
            built,
            stage=options.stage,
            shapes=options.shapes,
            batch=batch,
            rebuild=options.rebuild,
            progress=progress,
            command=command,
        )
    from vitesse.stages import open_model

    _refuse(options, ("stage",), "an .onnx file, which has no steps")
    artifact = open_model(options.subject, preset=options.preset, spec=options.spec)
    folder = options.out or options.subject.with_suffix(f".{ENGINES}")
    order = Order(target, built, folder, options.shapes, batch, options.rebuild, command)
    return build_file(artifact, order, progress)


def _refuse(options: argparse.Namespace, given: tuple[str, ...], beside: str) -> None:
    for name in given:
        if getattr(options, name):
            raise UsageError(f"--{name} beside {beside}", fix=f"leave --{name} out")


def _said(row: EngineRow) -> list[str]:
    """One engine in lines: what it is and where it lies, then why this graph, then what was rewritten or warned of."""
    if row.artifact is None:
        head = f"{row.name}  not built: {row.refusal}"
    else:
        parts = (
            f"{row.stage or 'the file'}{f' ({row.precision})' if row.precision else ''}",
            f"{row.seconds:.1f} s{', built before' if row.reused else ''}" if row.precision else "",
            f"{row.artifact.bytes / 1e6:.1f} MB",
            str(row.artifact.path),
        )
        head = "  ".join((row.name, *filter(None, parts)))
    changes = (f"{name}: {count}" for name, count in row.changes.items())
    return [head, *(f"  {line}" for line in (row.why, *changes, *row.notes) if line)]
