"""The two ends of gpu_precision.py that need the images: what it is fed, and what its answers are worth.

    python benchmarks/gpu_precision_scores.py prepare NAME -o DATA.npz [--limit N]
    python benchmarks/gpu_precision_scores.py score NAME FOLDER [--limit N] [--command TEXT]

NAME is a case of precision_tables.py with labelled images. `prepare` stores the resized pixels as uint8, a quarter of
what the feeds weigh, with what normalises them, and refuses a model whose feeds cannot be restored to the bit.
`score` writes benchmarks/results/gpu_precision_NAME.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from precision_tables import CASES, RESULTS

from vitesse.data.dataset import open_dataset
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.data.split import Split
from vitesse.ledger import Accuracy
from vitesse.pipeline import HOLDOUT
from vitesse.spec import ModelSpec
from vitesse.stages import open_model
from vitesse.verify.accuracy import against, score

Outputs = Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="do", required=True)
    preparing, scoring = commands.add_parser("prepare"), commands.add_parser("score")
    for command in (preparing, scoring):
        command.add_argument("name", choices=CASES)
        command.add_argument("--limit", type=int, default=0, help="images at most (default: all)")
    preparing.add_argument("-o", "--out", type=Path, required=True)
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("--command", default="", help="what was typed on the other machine")
    options = parser.parse_args()
    spec, split = opened(options.name, options.limit)
    if options.do == "prepare":
        np.savez_compressed(options.out, **prepared(spec, split))
        print(f"{options.out}: {len(split)} images, {options.out.stat().st_size / 2**20:.1f} MiB")
        return
    times = json.loads((options.folder / "times.json").read_text())
    first = next(iter(times["models"]))
    accuracy = accuracies(dict(np.load(options.folder / "outputs.npz")), spec, split, first)
    kept = {**times, "command": options.command, "accuracy": accuracy}
    (RESULTS / f"gpu_precision_{options.name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def opened(name: str, limit: int) -> tuple[ModelSpec, Split]:
    """The spec of a case's model and the images that its ledger was verified on."""
    case = CASES[name]
    spec = open_model(case.model, preset=case.recipe.preset, spec=case.recipe.spec).spec
    split = open_dataset(case.images, spec=spec, holdout=HOLDOUT).val
    return spec, split.spread(limit) if limit else split


def prepared(spec: ModelSpec, split: Split) -> dict[str, Any]:
    """All images as uint8 pixels (count, …) with what normalises them, and the other inputs under `feed/NAME`.

    Raises:
        ValueError: a feed is not a normalised uint8 image, such as one that is padded.
    """
    rules = spec.preprocessing
    shape = (3, 1, 1) if rules.layout == "NCHW" else (3,)
    order = slice(None) if rules.color == "RGB" else slice(None, None, -1)
    mean, std = (np.array(v, np.float32)[order].reshape(shape) for v in (rules.mean, rules.std))
    divisor = np.float32(1 / rules.scale)
    pixels, others = [], []
    for sample in split.samples:
        given = dict(feeds([sample.read()], spec, [str(sample.path)]))
        image = np.asarray(given.pop(spec.image_input))
        whole = np.rint((image * std + mean) * divisor).clip(0, 255).astype(np.uint8)
        if not np.array_equal((np.divide(whole, divisor, dtype=np.float32) - mean) / std, image):
            raise ValueError(f"{sample.path.name}: the feed is not a normalised image of 8 bits")
        pixels.append(whole)
        others.append(given)
    return {
        "names": np.array([sample.path.name for sample in split.samples]),
        "pixels": np.concatenate(pixels),
        "image_input": np.array(spec.image_input),
        "divisor": divisor,
        "mean": mean,
        "std": std,
        **{f"feed/{name}": np.concatenate([one[name] for one in others]) for name in others[0]},
    }


def accuracies(outputs: Outputs, spec: ModelSpec, split: Split, first: str) -> dict[str, dict[str, Any]]:
    """Metric, value, points lost against the label `first`, and images, by label.

    Raises:
        KeyError: there are no outputs of `first`.
        ValueError: the outputs are those of other images.
    """
    names = [sample.path.name for sample in split.samples]
    if outputs["names"].tolist() != names:
        raise ValueError(f"outputs of {len(outputs['names'])} images, not of the {len(names)} asked for")
    sizes = [sample.read().shape[:2] for sample in split.samples]
    by_label: dict[str, dict[str, np.ndarray]] = {}
    for key, values in outputs.items():
        if "/" in key:
            label, name = key.split("/", 1)
            by_label.setdefault(label, {})[name] = values
    found: dict[str, Accuracy] = {
        label: score(decode(one, spec, sizes), split, spec) for label, one in by_label.items()
    }
    return {label: one_line(against(accuracy, found[first])) for label, accuracy in found.items()}


def one_line(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "metric": accuracy.metric,
        "value": accuracy.value,
        "drop": accuracy.drop,
        "images": accuracy.images,
    }


if __name__ == "__main__":
    main()
