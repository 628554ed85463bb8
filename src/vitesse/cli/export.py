"""`vitesse export`: one clean ONNX file, held against the model it came from."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitesse.cli.models import add_model, given_about_model


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Export a model to ONNX and compare the graph with the model itself."
    add_model(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument(
        "--keep-aux", action="store_true", help="keep the heads of every decoder layer, as in training"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.export.to_file import export_to
    from vitesse.recipe import Recipe, merge
    from vitesse.report.progress import progress_bar

    with progress_bar() as progress:
        artifact = export_to(
            options.out,
            options.model,
            merge(Recipe(), given_about_model(options)),
            keep_aux=options.keep_aux,
            progress=progress,
        )
    print(f"{options.out}  {artifact.bytes / 1e6:.1f} MB")
    for name, value in artifact.provenance.options.items():
        print(f"  {name}: {value}")
    return 0
