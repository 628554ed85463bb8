"""Do importance scores rank the units of a ViT as leaving them out one by one does?

    python benchmarks/importance_rank.py SOURCES/vit_fashion

Prints, for each group, Spearman's rank correlation between scores (taylor, l1) and |change of the loss| with one unit
masked: docs/importance.md. SOURCES/vit_fashion holds vit_fashion.npz and calib/. One CPU thread; about two minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from ledgers import ROOT
from scipy.stats import spearmanr

from vitesse.compress.distillation.tasks import task_loss
from vitesse.compress.importance.images import labelled_batches
from vitesse.compress.importance.masking import masked
from vitesse.compress.importance.scores import scores
from vitesse.compress.importance.units import groups
from vitesse.data.dataset import open_dataset
from vitesse.sources.source import Given
from vitesse.sources.spec_file import read_spec_file
from vitesse.sources.trainable import open_trainable

IMAGES, MOST_UNITS = 64, 96


def main() -> None:
    """Score, mask, and print one line a group."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    spec = read_spec_file(ROOT / "examples" / "fashion" / "vit.toml")
    trainable = open_trainable(folder / "vit_fashion.npz", Given(spec))
    split = open_dataset(folder, spec=spec).calib.spread(IMAGES)
    loss = task_loss(trainable)
    found = {
        "taylor": scores(trainable, "taylor", labelled_batches(trainable, split), loss),
        "l1": scores(trainable, "l1"),
    }
    (batch,) = labelled_batches(trainable, split, IMAGES)
    draw = np.random.default_rng(0)
    with torch.no_grad():
        whole = loss(trainable.module, batch).item()
        for group in groups(trainable):
            units = draw.permutation(group.size)[:MOST_UNITS]
            changes = []
            for unit in units.tolist():
                with masked(trainable, group, [unit]):
                    changes.append(abs(loss(trainable.module, batch).item() - whole))
            ranks = {method: spearmanr(one[group.name][units], changes)[0] for method, one in found.items()}
            told = "  ".join(f"{method} {rank:+.2f}" for method, rank in ranks.items())
            print(f"{group.name:<22} {len(units):>3} of {group.size:>3}  {told}", flush=True)


if __name__ == "__main__":
    main()
