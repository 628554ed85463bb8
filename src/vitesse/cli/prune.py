"""`vitesse prune`: cut a network down to a share of its operations, and let it learn from the original again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.cli.learning import add_learning, train_options
from vitesse.cli.values import number, present, seconds, setting, whole

if TYPE_CHECKING:
    from vitesse.compress.distillation.options import DistilOptions
    from vitesse.compress.pruning.job import Job, PruneRun


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Cut channels, feed-forward widths and heads of a DETR or ViT, least important first; fine-tune what is left. "
        "An interrupted fine-tuning goes on when the same command is repeated."
    )
    parser.add_argument(
        "model",
        help="a DETR checkpoint (.pth, .safetensors), a ViT checkpoint (.npz), or a folder of prune or distill",
    )
    parser.add_argument(
        "--flops",
        type=number(above=0, most=1),
        required=True,
        metavar="SHARE",
        help="of the operations that stay, as 0.7",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets the network and the training's log"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="training images: COCO, class folders or images"
    )
    parser.add_argument("--val", type=Path, metavar="FOLDER", help="images to score on")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--finetune", type=seconds, metavar="TIME", help="how long to train afterwards, as 20m"
    )
    length.add_argument("--steps", type=int, metavar="N", help="how many steps to train instead")
    parser.add_argument(
        "--importance", type=Path, metavar="FILE", help="importance.json of `vitesse importance`"
    )
    parser.add_argument(
        "--method",
        choices=["taylor", "l1", "bn"],
        help="without a file: activation × gradient on images (default), norms of weights, or BatchNorm",
    )
    parser.add_argument("--images", type=whole(1), metavar="N", help="images for the scores (default: 256)")
    parser.add_argument(
        "--multiple",
        type=whole(1),
        metavar="N",
        help="widths stay multiples of N (default: 8; 16 for INT8, FP8)",
    )
    parser.add_argument(
        "--decoder-layers", type=whole(1), metavar="N", help="keep a DETR's first N decoder layers"
    )
    parser.add_argument(
        "--no-labels", action="store_true", help="use images alone, and the original's answers"
    )
    parser.add_argument("--spec", type=Path, metavar="TOML", help="how the model is fed and read, in a file")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        dest="settings",
        metavar="KEY=VALUE",
        help="what the weights do not show, as heads=8; may be repeated",
    )
    add_learning(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.compress.pruning.job import prune_to
    from vitesse.report.progress import progress_bar

    job = asked(options)
    with progress_bar() as progress:
        done = prune_to(options.out, job, progress=progress)
    print(table(done))
    trained = done.trained
    if trained is not None and trained.stopped:
        print(f"\nstopped early: {trained.stopped}; the last good weights are kept")
    if trained is None:
        print("\nnot fine-tuned: --data TRAIN --finetune 20m brings back most of what it lost")
    print(
        f"\nnext: vitesse optimize {options.out} --data {options.val or 'IMAGES'} --out {options.out}-optimised"
    )
    return 1 if trained is not None and trained.stopped else 0


def asked(options: argparse.Namespace) -> Job:
    """Turn the command line into a job; raises UsageError for a value out of its range."""
    from vitesse.compress.pruning.job import Job
    from vitesse.sources.spec_file import given_from

    given: dict[str, object] = present(
        importance=options.importance,
        method=options.method,
        images=options.images,
        multiple=options.multiple,
        decoder_layers=options.decoder_layers,
    )
    return Job(
        options.model,
        options.flops,
        options.data,
        options.val,
        given_from(options.spec, options.settings),
        labels=not options.no_labels,
        learning=_learning(options),
        **given,  # type: ignore[arg-type]
    )


def _learning(options: argparse.Namespace) -> DistilOptions | None:
    from vitesse.compress.distillation.options import DistilOptions

    if options.finetune is None and options.steps is None:
        return None
    train = train_options(options, options.finetune)
    return DistilOptions(train, labels=not options.no_labels, augmentation=options.augment)


def table(done: PruneRun) -> str:
    """Return original, pruned and fine-tuned in columns, and what is left of every group that gave way."""
    from vitesse.report.figures import METRICS

    pruned = done.pruned
    rows = [("original", 0), ("pruned", 1), *([("fine-tuned", 1)] if done.trained is not None else [])]
    lines = [f"{'':12}{METRICS.get(done.metric, ''):>10}{'GFLOPs':>10}{'':>8}{'M params':>10}"]
    for name, after in rows:
        score = f"{done.scores[name]:.2f}" if name in done.scores else ""
        share = f"{pruned.share:.1%}" if after else ""
        lines.append(
            f"{name:12}{score:>10}{pruned.flops[after] / 1e9:>10.3f}{share:>8}{pruned.parameters[after] / 1e6:>10.3f}"
        )
    if done.trained is not None:
        lines.append(f"{done.trained.steps} steps in {done.trained.seconds:.0f} s")
    gave = {name: units for name, units in pruned.kept.items() if units[0] < units[1]}
    lines += [f"\n{len(gave)} of {len(pruned.kept)} groups gave way:"]
    lines += [f"  {name:52}{left:>6} of {before}" for name, (left, before) in gave.items()]
    return "\n".join([*lines, *(f"note: {note}" for note in done.notes)])
