"""What every command that takes a model lets say about it."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitesse.cli.values import axes, gridsample, height_width, names, present, setting


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what every command that takes a model knows about it."""
    parser.add_argument(
        "model",
        help="an .onnx file, a DETR checkpoint (.pth, .safetensors), a ViT checkpoint (.npz), hf:NAME or "
        "hf:FOLDER, timm:NAME, flax:PACKAGE.MODULE:FUNCTION, or a published model such as detr_resnet50",
    )
    parser.add_argument("--spec", type=Path, metavar="TOML", help="how the model is fed and read, in a file")
    parser.add_argument(
        "--preset", help="how to feed a foreign ONNX file: deimv2, rtdetr, detr, vit, imagenet"
    )
    group = parser.add_argument_group("models that are not ONNX yet")
    group.add_argument(
        "--weights", type=Path, metavar="FILE", help="take this file instead of downloading one"
    )
    group.add_argument(
        "--size", type=height_width, metavar="HxW", help="image height × width (default: the model's own)"
    )
    group.add_argument(
        "--dynamic",
        type=axes,
        metavar="AXES",
        help="of batch,height,width, or none: what stays open (default: batch)",
    )
    group.add_argument("--opset", type=int, metavar="N", help="ONNX operator set, 18 or more (default: 18)")
    group.add_argument(
        "--set",
        type=setting,
        action="append",
        dest="settings",
        metavar="KEY=VALUE",
        help="what the weights do not show, as heads=8; may be repeated",
    )

    parser.add_argument(
        "--lower",
        type=names,
        metavar="LIST",
        help="operators to rewrite into simpler ones for a runtime that lacks them or gets them wrong, as grid_sample",
    )
    parser.add_argument(
        "--gridsample",
        type=gridsample,
        dest="lower",
        metavar="gather",
        help="the same as --lower grid_sample",
    )


def given_about_model(options: argparse.Namespace) -> dict[str, object]:
    """The options of `add_model`, under the recipe's names."""
    return present(
        preset=options.preset,
        spec=None if options.spec is None else str(options.spec),
        lower=options.lower,
        source=present(
            weights=None if options.weights is None else str(options.weights),
            opset=options.opset,
            dynamic=options.dynamic,
            size=options.size,
            settings=None if options.settings is None else dict(options.settings),
        ),
    )
