"""`vitesse distill`: a smaller network learns from a larger one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.cli.learning import add_learning, train_options
from vitesse.cli.values import seconds, setting

if TYPE_CHECKING:
    from vitesse.compress.distillation.job import Distilled, Job
    from vitesse.compress.distillation.options import DistilOptions


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Train a student on a teacher's answers and on labels, where there are any. An interrupted run goes on when "
        "the same command is repeated."
    )
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="MODEL",
        help="a DETR (.pth, .safetensors), a ViT (.npz), or a folder of prune or distill",
    )
    parser.add_argument(
        "--student",
        required=True,
        metavar="STUDENT",
        help="a model as for --teacher; cut:decoder_layers=3, the teacher's first layers; like:hidden=64, new weights",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="training images: COCO, class folders or images",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets the student and the training's log"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--time", type=seconds, metavar="TIME", help="how long to train, as 30m")
    length.add_argument("--steps", type=int, metavar="N", help="how many steps to train instead")
    parser.add_argument(
        "--val", type=Path, metavar="FOLDER", help="images to score on; the best weights are then kept"
    )
    parser.add_argument(
        "--spec", type=Path, metavar="TOML", help="how the teacher is fed and read, in a file"
    )
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        dest="settings",
        metavar="KEY=VALUE",
        help="what the teacher's weights do not show, as heads=8; may be repeated",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--no-labels", action="store_true", help="learn from the teacher alone")
    source.add_argument("--labels-only", action="store_true", help="learn from labels alone, to compare with")
    parser.add_argument("--features", action="store_true", help="imitate the teacher's inner tokens, too")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="softens the teacher's classes (default: ViT 3, DETR 1)",
    )
    add_learning(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.compress.distillation.job import distil_to
    from vitesse.report.progress import progress_bar

    job, learning = asked(options)
    with progress_bar() as progress:
        done = distil_to(options.out, job, learning, progress=progress)
    print(table(done))
    if done.trained.stopped:
        print(f"\nstopped early: {done.trained.stopped}; the last good weights are kept")
    print(
        f"\nnext: vitesse optimize {options.out} --data {options.val or 'IMAGES'} --out {options.out}-optimised"
    )
    return 1 if done.trained.stopped else 0


def asked(options: argparse.Namespace) -> tuple[Job, DistilOptions]:
    """Turn the command line into a job and its options; raises UsageError for a value out of its range."""
    from vitesse.compress.distillation.job import Job
    from vitesse.compress.distillation.options import DistilOptions
    from vitesse.sources.spec_file import given_from

    given = given_from(options.spec, options.settings)
    learning = DistilOptions(
        train_options(options, options.time),
        labels=not options.no_labels,
        temperature=options.temperature,
        features=options.features,
        augmentation=options.augment,
    )
    job = Job(
        options.teacher, options.student, options.data, options.val, given, taught=not options.labels_only
    )
    return job, learning


def table(done: Distilled) -> str:
    """Return teacher and student in columns: score in points, operations and parameters of one image."""
    from vitesse.report.figures import METRICS

    head = f"{'':16}{METRICS.get(done.metric, ''):>10}{'GFLOPs':>10}{'M params':>10}"
    lines = [
        f"{line.name:16}{'' if line.score is None else f'{line.score:.2f}':>10}"
        f"{line.flops / 1e9:>10.3f}{line.parameters / 1e6:>10.3f}"
        for line in done.lines
    ]
    ending = f"{done.trained.steps} steps in {done.trained.seconds:.0f} s"
    return "\n".join([head, *lines, ending, *(f"note: {note}" for note in done.notes)])
