"""`vitesse diagnose`: why the output of a model is zeros, NaN or wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Find the first tensor that is wrong, the likely cause, and the command that mends it."
    )
    parser.add_argument("model", type=Path, help="the .onnx file whose outputs are wrong")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="the .onnx file it was made from, which is right"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="images to feed (default: random ones)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="how many of them (default: 8)")
    parser.add_argument("--spec", type=Path, metavar="TOML", help="how the model is fed and read, in a file")
    parser.add_argument(
        "--preset", help="how to feed a foreign ONNX file: deimv2, rtdetr, detr, vit, imagenet"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.diagnose.command import diagnose

    found = diagnose(
        options.model,
        options.against,
        options.data,
        preset=options.preset,
        spec_file=options.spec,
        images=options.images,
    )
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        found.show()
    return 0 if found.healthy else 1
