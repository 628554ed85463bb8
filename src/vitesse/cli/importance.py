"""`vitesse importance`: which channels, heads, layers and queries of a network matter."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitesse.cli.values import setting, whole


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Score the channels, heads, layers and queries of a DETR or ViT; measure what it loses without them."
    )
    parser.add_argument(
        "model",
        help="a DETR checkpoint (.pth, .safetensors), a ViT checkpoint (.npz), or a folder of prune or distill",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="COCO, class folders or images"
    )
    parser.add_argument("--spec", type=Path, metavar="TOML", help="how the model is fed and read, in a file")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="what the weights do not show, as heads=8; may be repeated",
    )
    parser.add_argument(
        "--method",
        choices=["taylor", "l1", "bn"],
        default="taylor",
        help="activation × gradient on images (default), norms of weights, or BatchNorm (backbone only)",
    )
    parser.add_argument(
        "--images",
        type=whole(1),
        default=64,
        metavar="N",
        help="images to score on, and to measure on (default: 64)",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="mask shares of every group, and each head, layer and query alone, and measure the accuracy",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("importance"),
        metavar="FOLDER",
        help="where importance.json and importance.html go (default: importance)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.compress.importance.command import find_importance, write_files
    from vitesse.compress.importance.table import print_importance
    from vitesse.report.progress import progress_bar
    from vitesse.sources.spec_file import given_from
    from vitesse.sources.trainable import open_trainable

    trainable = open_trainable(options.model, given_from(options.spec, options.settings))
    with progress_bar() as progress:
        found = find_importance(
            trainable,
            options.data,
            model=Path(options.model).name,
            method=options.method,
            images=options.images,
            measure=options.sensitivity,
            progress=progress,
        )
    print_importance(found)
    print(f"\npictures: {write_files(found, options.out)}")
    return 0
