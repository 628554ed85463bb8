"""`vitesse optimize`: the main job."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.backends import TARGETS
from vitesse.cli.models import add_model, given_about_model
from vitesse.cli.values import milliseconds, names, present, seconds

if TYPE_CHECKING:
    from vitesse.recipe import Recipe


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Clean, fuse, quantise and build a model; verify and measure every step."
    add_model(parser)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="COCO, class folders or images"
    )
    parser.add_argument("--calib-data", type=Path, metavar="FOLDER", help="other images to calibrate INT8 on")
    parser.add_argument("--target", help=f"of {', '.join(TARGETS)} (default: cpu)")
    parser.add_argument(
        "--out", type=Path, default=Path("run"), metavar="FOLDER", help="the run folder (default: run)"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="accuracy budget in points (default: 0.5)"
    )
    parser.add_argument(
        "--latency-budget", type=milliseconds, metavar="TIME", help="the latency needed, as 16ms"
    )
    parser.add_argument(
        "--precisions",
        type=names,
        metavar="LIST",
        help="of fp32,fp16,bf16,int8,fp8,int8+fp16,fp8+fp16 (default: fp32,int8; for a GPU fp32,fp16)",
    )
    parser.add_argument(
        "--levers",
        type=names,
        metavar="LIST",
        help="also make the network smaller, untrained: of decoder,queries,tokens,size (default: none)",
    )
    parser.add_argument(
        "--compress",
        type=float,
        metavar="SHARE",
        help="first prune a checkpoint to this share of its operations, and train it again, as 0.7",
    )
    parser.add_argument(
        "--train-data", type=Path, metavar="FOLDER", help="images to train on: COCO or class folders"
    )
    parser.add_argument("--train-val", type=Path, metavar="FOLDER", help="images to pick the best weights on")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--train-time", type=seconds, metavar="TIME", help="how long to train, as 30m (default: 20m)"
    )
    length.add_argument("--train-steps", type=int, metavar="N", help="how many steps to train instead")
    parser.add_argument(
        "--buckets",
        type=int,
        metavar="N",
        help="also measure a model of free height and width with images laid into N tensor sizes (default: 0)",
    )
    parser.add_argument(
        "--allow-random",
        action="store_true",
        default=None,
        help="decide on FP16 by random images where there are none to calibrate on",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use N validation images only, taken evenly (default: all)"
    )
    parser.add_argument(
        "--calib-images", type=int, metavar="N", help="images for calibration, up to 512 (default: 500)"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="seconds per latency measurement (default: 4)"
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="TOML", help="all options in a file; the command line wins"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.pipeline import optimize
    from vitesse.report.progress import progress_bar
    from vitesse.report.table import print_ledger

    with progress_bar() as progress:
        run = optimize(
            options.model,
            data=options.data,
            out=options.out,
            recipe=recipe_from(options),
            command=options.command_line,
            progress=progress,
        )
    print_ledger(run.ledger)
    print(f"\nreport: {run.folder / 'report.html'}")
    budget = run.ledger.latency_budget
    return 0 if run.verified and (budget is None or budget["met"]) else 1


def recipe_from(options: argparse.Namespace) -> Recipe:
    """Merge the recipe file and the options that were given; the command line wins."""
    from vitesse.recipe import Recipe, load_recipe, merge

    recipe = load_recipe(options.recipe) if options.recipe else Recipe()
    given = {
        **given_about_model(options),
        "target": options.target,
        "max_drop": options.max_drop,
        "latency_budget_ms": options.latency_budget,
        "precisions": options.precisions,
        "levers": options.levers,
        "buckets": options.buckets,
        "half": present(allow_random=options.allow_random),
        "data": present(
            limit=options.limit,
            calib_images=options.calib_images,
            calib_data=None if options.calib_data is None else str(options.calib_data),
        ),
        "measure": present(seconds=options.seconds),
        "compress": present(
            share=options.compress,
            train_data=None if options.train_data is None else str(options.train_data),
            train_val=None if options.train_val is None else str(options.train_val),
            seconds=options.train_time,
            steps=options.train_steps,
        ),
    }
    return merge(recipe, present(**given))
