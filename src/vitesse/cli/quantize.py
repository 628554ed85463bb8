"""`vitesse quantize`: one model, calibrated on images, with Q/DQ in the graph."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitesse.cli.models import add_model, given_about_model
from vitesse.cli.values import names, present


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Quantise a model; what that costs and which layers bear it, `vitesse optimize` finds out."
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="images to calibrate on: at best 100 to 500",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument("--number", choices=["int8", "fp8"], default="int8", help="default: int8")
    parser.add_argument(
        "--half",
        action="store_true",
        help="write FP16 instead of float32 where nothing is quantised, for GPUs",
    )
    parser.add_argument(
        "--method", help="how ranges are chosen: minmax, entropy, percentile (default) or mse"
    )
    parser.add_argument(
        "--percentile", type=float, metavar="P", help="of values inside the range (default: 99.99)"
    )
    parser.add_argument(
        "--calib-images", type=int, metavar="N", help="images for calibration, up to 512 (default: 500)"
    )
    parser.add_argument(
        "--activations", help="int8: zero point 0, for every runtime (default); uint8: for CPUs only"
    )
    parser.add_argument(
        "--smooth", type=float, metavar="ALPHA", help="SmoothQuant: move outliers into the weights, 0 to 1"
    )
    parser.add_argument(
        "--keep",
        type=names,
        metavar="LIST",
        help="blocks that stay in FP32, by the names this command prints",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.precision.to_file import quantize_to
    from vitesse.recipe import Recipe, merge
    from vitesse.report.progress import progress_bar

    given = {
        **given_about_model(options),
        "data": present(calib_images=options.calib_images),
        "int8": present(
            method=options.method,
            percentile=options.percentile,
            activations=options.activations,
            smooth=options.smooth,
        ),
    }
    with progress_bar() as progress:
        made, blocks = quantize_to(
            options.out,
            options.model,
            options.data,
            merge(Recipe(), given),
            number=options.number,
            keep=options.keep or (),
            half=options.half,
            progress=progress,
        )
    print(f"{options.out}  {made.artifact.bytes / 1e6:.1f} MB")
    for name, count in made.changes.items():
        print(f"  {name}: {count}")
    print(f"  blocks: {', '.join(blocks)}")
    for note in made.notes:
        print(f"  {note}")
    return 0
