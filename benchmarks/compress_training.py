"""The trainings of compress.py: what each case prunes or distils, and its rows as JSON."""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledgers import ROOT

from vitesse.compress.distillation import job as distilling
from vitesse.compress.distillation.options import DistilOptions
from vitesse.compress.pruning import job as pruning
from vitesse.environment import describe
from vitesse.sources.source import Given
from vitesse.sources.spec_file import read_spec_file
from vitesse.storage import write_atomically
from vitesse.training.loop import Trained
from vitesse.training.options import TrainOptions

WEIGHTS = {"vit": "vit_fashion.npz", "detr": "detr_fashion.pth"}
TRAINING = {"vit": "images", "detr": "scenes"}
KEPT = ("model.safetensors", "config.json", "training.csv", "pruning.json")


@dataclass(frozen=True)
class Case:
    """A training.

    Args:
        kind: "vit" or "detr".
        share: of the operations that stay when pruned; None: a student of three decoder layers, cut out of the teacher.
        taught: by the original; else by labels alone.
        feature_weight: of imitated tokens, 0 without.
        augmentation: of the training images.
    """

    kind: str
    rate: float
    batch: int
    share: float | None = None
    multiple: int = 8
    decoder_layers: int | None = None
    taught: bool = True
    feature_weight: float = 0.0
    augmentation: str = "usual"


CASES: Mapping[str, Case] = {
    "vit": Case("vit", rate=1e-3, batch=512, share=0.5, feature_weight=1.0),
    # Whole blocks of 16 channels and half of the decoder: what a CPU turns into speed (docs/compress.md).
    "detr": Case(
        "detr",
        1e-3,
        256,
        share=0.6,
        multiple=16,
        decoder_layers=3,
        feature_weight=5.0,
        augmentation="in-place",
    ),
    "student": Case("detr", 3e-4, 128, feature_weight=1.0),
    "student_labels": Case("detr", 3e-4, 128, taught=False),
}


def train_case(options: argparse.Namespace) -> None:
    """Train, write RESULTS/compress_CASE.json and pack the smaller network into RESULTS/compress_CASE.tgz."""
    name, case = options.case, CASES[options.case]
    folder = options.models / name
    learning = DistilOptions(
        TrainOptions(
            seconds=options.seconds,
            steps=options.steps,
            batch=options.batch or case.batch,
            rate=case.rate,
            checkpoint_seconds=120,
            # Scored before and after only: the best of many looks at the validation images would flatter the result.
            score_every=1.0,
        ),
        features=case.feature_weight > 0,
        feature_weight=case.feature_weight,
        augmentation=case.augmentation,
    )
    rows = (pruned if case.share else distilled)(case, folder, options, learning)
    found = {
        "command": said(name, options),
        "environment": describe(),
        "case": {"name": name, **vars(case)},
        "together": "other cases on the same device" if options.parallel else "",
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / f"compress_{name}.json", (json.dumps(found, indent=1) + "\n").encode())
    with tarfile.open(options.out / f"compress_{name}.tgz", "w:gz") as packed:
        for file in (folder / one for one in KEPT):
            if file.exists():
                packed.add(file, f"{name}/{file.name}")
    print(*(f"{name}: {row['name']}: {row['score']:.2f}" for row in rows), sep="\n")


def pruned(
    case: Case, folder: Path, options: argparse.Namespace, learning: DistilOptions
) -> list[dict[str, Any]]:
    """Original, pruned, pruned and distilled."""
    assert case.share is not None
    job = pruning.Job(
        str(weights(options.sources, case.kind)),
        case.share,
        options.data / TRAINING[case.kind],
        validation(options.sources, case.kind),
        given(case.kind),
        multiple=case.multiple,
        decoder_layers=case.decoder_layers,
        learning=learning,
    )
    done = pruning.prune_to(folder, job)
    assert done.trained is not None
    sizes = list(zip(done.pruned.flops, done.pruned.parameters, strict=True))
    return [
        row("original", done.scores["original"], done.metric, sizes[0]),
        row("pruned, not trained", done.scores["pruned"], done.metric, sizes[1]),
        row("pruned, distilled", done.scores["fine-tuned"], done.metric, sizes[1], done.trained),
    ]


def distilled(
    case: Case, folder: Path, options: argparse.Namespace, learning: DistilOptions
) -> list[dict[str, Any]]:
    """Original, the student cut out of it, the student trained."""
    if not case.taught:
        learning = DistilOptions(learning.train)
    job = distilling.Job(
        str(weights(options.sources, case.kind)),
        "cut:decoder_layers=3",
        options.data / TRAINING[case.kind],
        validation(options.sources, case.kind),
        given(case.kind),
        taught=case.taught,
    )
    done = distilling.distil_to(folder, job, learning)
    how = "3 decoder layers, distilled" if case.taught else "3 decoder layers, trained on labels alone"
    names = ("original", "3 decoder layers, not trained", how)
    rows = []
    for name, line in zip(names, done.lines, strict=True):
        assert line.score is not None
        trained = done.trained if name == how else None
        rows.append(row(name, line.score, done.metric, (line.flops, line.parameters), trained))
    return rows


def row(
    name: str, score: float, metric: str, sizes: Sequence[int], trained: Trained | None = None
) -> dict[str, Any]:
    """Score in points, operations, parameters, and how the training went: (step, seconds, score) at each score."""
    found = {"name": name, "score": score, "metric": metric, "flops": sizes[0], "parameters": sizes[1]}
    if trained is None:
        return found
    scored = [one for one in trained.history if one.get("score") is not None]
    curve = [(int(one["step"]), round(one["seconds"], 1), round(one["score"], 3)) for one in scored]
    return {
        **found,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "stopped": trained.stopped,
        "curve": curve,
    }


def said(name: str, options: argparse.Namespace) -> str:
    """The command, without the folders of one machine."""
    length = {"seconds": options.seconds, "steps": options.steps, "batch": options.batch}
    numbers = [f" --{key} {value:g}" for key, value in length.items() if value is not None]
    return f"python benchmarks/compress.py train {name} --data DATA --sources SOURCES --models MODELS{''.join(numbers)}"


def weights(sources: Path, kind: str) -> Path:
    """The original's weights."""
    return sources / f"{kind}_fashion" / WEIGHTS[kind]


def validation(sources: Path, kind: str) -> Path:
    """All validation images where they were carried along, else those of the examples."""
    all_of_them = sources / f"{kind}_fashion"
    return all_of_them if (all_of_them / "val").is_dir() else ROOT / "examples" / "fashion" / kind


def given(kind: str) -> Given:
    """How the model is fed and read."""
    return Given(read_spec_file(ROOT / "examples" / "fashion" / f"{kind}.toml"))
