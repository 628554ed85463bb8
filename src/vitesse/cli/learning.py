"""What `prune` and `distill` are told alike of how a network learns."""

from __future__ import annotations

import argparse

from vitesse.cli.values import present, whole
from vitesse.training.options import AUGMENTATIONS, TrainOptions

# Seeds of steps are made of it, and have to fit into the 64 bits that torch takes.
_MOST_SEED = 2**32 - 1


def add_learning(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="usual",
        help="training images are moved, zoomed, mirrored and lit (usual, the default); in-place moves and zooms "
        "nothing: for a model that was trained on pictures of one size and place",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="images a training step (default: 128)")
    parser.add_argument("--rate", type=float, metavar="R", help="learning rate (default: 0.0003)")
    parser.add_argument(
        "--seed", type=whole(0, _MOST_SEED), metavar="N", help="of everything random (default: 0)"
    )


def train_options(options: argparse.Namespace, seconds: float | None) -> TrainOptions:
    """Turn them into those of a training of so many seconds, or of --steps."""
    given: dict[str, object] = present(
        seconds=seconds, steps=options.steps, batch=options.batch, rate=options.rate, seed=options.seed
    )
    return TrainOptions(**given)  # type: ignore[arg-type]
