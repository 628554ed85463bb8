"""`vitesse profile`: where the time goes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitesse.cli.models import add_model, given_about_model
from vitesse.cli.values import whole


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Show where the time of a model goes, or of a run before and after."
    add_model(parser)
    parser.add_argument("--by", choices=["module", "op"], default="module", help="default: module")
    parser.add_argument(
        "--depth",
        type=whole(0),
        default=0,
        metavar="N",
        help="levels of modules below each part (default: 0)",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="images to feed (default: random ones)")
    parser.add_argument("--target", help="build the model for this runtime first: onnxruntime or openvino")
    parser.add_argument("--runs", type=whole(1), default=20, metavar="N", help="measured calls (default: 20)")
    parser.add_argument("--threads", type=whole(0), default=0, metavar="N", help="default: every usable core")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.environment import usable_cores
    from vitesse.profile.command import profile_target
    from vitesse.profile.subject import pictures, subject
    from vitesse.recipe import Recipe, merge

    recipe = merge(Recipe(), given_about_model(options))
    with subject(options.model, recipe, options.target) as artifacts:
        found = profile_target(
            artifacts,
            pictures(options.data),
            by=options.by,
            depth=options.depth,
            runs=options.runs,
            threads=options.threads or usable_cores(),
        )
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        found.show()
    return 0
