"""What buckets waste on real photographs, and what padding to a bucket costs a detector.

    python benchmarks/resolution.py            writes benchmarks/results/resolution.json
    python benchmarks/resolution.py --tables   writes the tables of docs/resolution.md from this file

Photographs: the 53 of coco_ccby, sizes only. Detector: detr_fashion, exported with open batch, height and width (needs
torch), on its 300 validation scenes, which are all of 256×256 and get other sizes here in two ways: cut to random sides
of 160 to 256, at the scale the model was trained for; or stretched, their boxes with them, to random sides of 224, 256,
288 or 320, all multiples of its stride. The seed is fixed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ledgers import DATA, ROOT, environment_text, with_section
from PIL import Image

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import LoadOptions, Session
from vitesse.data.buckets import choose_buckets, waste, with_buckets
from vitesse.data.dataset import open_dataset
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.data.results import Result
from vitesse.data.scaling import Size, wanted_size
from vitesse.data.split import Split
from vitesse.environment import describe
from vitesse.measure import Candidate, opened
from vitesse.recipe import SourceOptions
from vitesse.resolution import image_sizes
from vitesse.spec import ModelSpec, Preprocessing, Resize
from vitesse.verify.accuracy import score

RESULTS = ROOT / "benchmarks" / "results" / "resolution.json"
PAGE = ROOT / "docs" / "resolution.md"
COMMAND = "python benchmarks/resolution.py"
COUNTS = (1, 2, 3, 4, 6)
BATCH = 8
SHUFFLES = 50
RULES = {
    "shortest side 800, longest at most 1333": Preprocessing((800, 1333), Resize.SHORTEST),
    "fitted into 640×640": Preprocessing((640, 640), Resize.LETTERBOX),
    "as many pixels as 640×640": Preprocessing((640, 640), Resize.STRETCH),
}
# How scenes get other sizes → their sides.
SCENES = {"cut": range(160, 257), "stretched": range(224, 321, 32)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--limit", type=int, help="scenes at most (default: all 300)")
    options = parser.parse_args()
    if not options.tables:
        given = "" if options.limit is None else f" --limit {options.limit}"
        found = {
            "command": COMMAND + given,
            "environment": describe(),
            "waste": photographs(),
            "accuracy": detector(options.limit),
        }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page_with_tables(PAGE.read_text()))


def photographs() -> list[dict[str, Any]]:
    """Share of padding of the photographs under every rule, by number of buckets and with batches padded."""
    sizes = image_sizes(open_dataset(DATA / "coco_ccby", holdout=0).val)
    rows = []
    for title, rules in RULES.items():
        chosen = {count: choose_buckets(sizes, rules, count) for count in COUNTS}
        rows.append(
            {
                "rule": title,
                "images": len(sizes),
                "batches": padding_of_batches([wanted_size(size, rules) for size in sizes]),
                "buckets": {str(count): some for count, some in chosen.items()},
                "padding": {str(count): waste(sizes, rules, some) for count, some in chosen.items()},
            }
        )
    return rows


def padding_of_batches(wanted: Sequence[Size]) -> float:
    """Share of padding where every 8 images are padded to the largest height and width of them; mean of shuffles."""
    rng, shown, taken = np.random.default_rng(0), 0, 0
    for _ in range(SHUFFLES):
        mixed = np.array(wanted)[rng.permutation(len(wanted))]
        for batch in (mixed[start : start + BATCH] for start in range(0, len(mixed), BATCH)):
            shown += int(batch.prod(axis=1).sum())
            taken += int(batch.max(axis=0).prod()) * len(batch)
    return 1 - shown / taken


def detector(limit: int | None) -> list[dict[str, Any]]:
    """AP of the detector on scenes of many sizes, by how they become tensors."""
    rows = []
    with TemporaryDirectory(prefix="vitesse-") as temporary:
        folder = Path(temporary)
        artifact = exported(folder)
        with opened(Candidate(artifact, LoadOptions())) as session:
            for how in SCENES:
                split = open_dataset(scenes(folder / how, how), spec=artifact.spec, holdout=0).val
                split = split if limit is None else split.spread(limit)
                for row in measured(session, artifact.spec, split):
                    rows.append({"scenes": how, **row})
                    print(rows[-1], flush=True)
    return rows


def exported(folder: Path) -> Artifact:
    """The detector with open batch, height and width; images are fed as they are."""
    text = (ROOT / "examples" / "fashion" / "detr.toml").read_text()
    (folder / "spec.toml").write_text(text)
    options = SourceOptions(dynamic=("batch", "height", "width"))
    checkpoint = DATA / "detr_fashion" / "detr_fashion.pth"
    return stages.open_model(checkpoint, spec=folder / "spec.toml", options=options, store=Store(folder))


def scenes(folder: Path, how: str) -> Path:
    """Write the validation scenes in other sizes, with their labels; of a cut scene only whole objects count."""
    source = DATA / "detr_fashion"
    (folder / "images").mkdir(parents=True)
    raw = json.loads((source / "instances_val.json").read_text())
    rng = np.random.default_rng(0)
    factors = {}
    for image in raw["images"]:
        height, width = (int(side) for side in rng.choice(SCENES[how], 2))
        picture = Image.open(source / "val" / image["file_name"])
        if how == "stretched":
            factors[image["id"]] = (width / image["width"], height / image["height"])
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        else:
            factors[image["id"]] = (1.0, 1.0)
            picture = picture.crop((0, 0, width, height))
        image["width"], image["height"] = width, height
        picture.save(folder / "images" / image["file_name"], quality=95)
    sizes = {image["id"]: (image["width"], image["height"]) for image in raw["images"]}
    kept = []
    for entry in raw["annotations"]:
        (across, down), (width, height) = factors[entry["image_id"]], sizes[entry["image_id"]]
        x, y, wide, high = entry["bbox"]
        entry["bbox"] = [x * across, y * down, wide * across, high * down]
        entry["area"] *= across * down
        if (x + wide) * across <= width + 1e-6 and (y + high) * down <= height + 1e-6:
            kept.append(entry)
    (folder / "annotations.json").write_text(json.dumps({**raw, "annotations": kept}))
    return folder


def measured(session: Session, spec: ModelSpec, split: Split) -> list[dict[str, Any]]:
    """AP of every way to make tensors of the scenes."""
    sizes, rules = image_sizes(split), spec.preprocessing
    fixed = replace(spec, preprocessing=replace(rules, resize=Resize.STRETCH))
    own = with_buckets(spec, sorted(set(sizes)))
    rows = [
        {"tensors": "each its own", **accuracy(answers(session, own, split), split, spec)},
        {"tensors": "stretched to 256×256", **accuracy(answers(session, fixed, split), split, spec)},
        {"tensors": f"batches of {BATCH}", **accuracy(in_batches(session, spec, split), split, spec)},
    ]
    rows[2]["padding"] = padding_of_batches(sizes)
    for count in COUNTS:
        buckets = choose_buckets(sizes, rules, count)
        bucketed = with_buckets(spec, buckets)
        rows.append(
            {
                "tensors": f"{count} buckets" if count > 1 else "1 bucket",
                "padding": waste(sizes, rules, buckets),
                "buckets": buckets,
                **accuracy(answers(session, bucketed, split), split, spec),
                "unmasked": accuracy(answers(session, bucketed, split, masked=False), split, spec),
            }
        )
    return rows


def accuracy(results: Sequence[Result], split: Split, spec: ModelSpec) -> dict[str, float]:
    """AP and AP50 of results that are there."""
    found = score(results, split, spec)
    return {"ap": found.value, "ap50": found.details["AP50"]}


def answers(session: Session, spec: ModelSpec, split: Split, *, masked: bool = True) -> list[Result]:
    """Results of a split, one image a call.

    masked: the graph is told what of the tensor is image; else that all of it is, as a graph without a mask takes it.
    """
    assert spec.valid_size_input is not None
    results: list[Result] = []
    for sample, pixels in split:
        fed = feeds([pixels], spec, [str(sample.path)])
        reading = spec
        if not masked:
            fed[spec.valid_size_input] = np.array([fed[spec.image_input].shape[2:]], np.int64)
            reading = replace(spec, valid_size_input=None)
        results += decode(session.run(fed).outputs, reading, [(pixels.shape[0], pixels.shape[1])])
    return results


def in_batches(session: Session, spec: ModelSpec, split: Split) -> list[Result]:
    """Results of a split in batches as they come, each padded to its largest height and width."""
    results: list[Result] = []
    for start in range(0, len(split), BATCH):
        images = [sample.read() for sample in split.samples[start : start + BATCH]]
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        largest = (max(height for height, _ in sizes), max(width for _, width in sizes))
        padded = with_buckets(spec, (largest,))
        results += decode(session.run(feeds(images, padded)).outputs, padded, sizes)
    return results


def results() -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def waste_table(found: dict[str, Any]) -> str:
    """One line a rule: padding with batches padded to their largest image, and with 1 to 6 buckets."""
    heads = " | ".join(f"{count} bucket{'s' * (count > 1)}" for count in COUNTS)
    lines = [
        f"| scaled to | batches of {BATCH}, padded to the largest | {heads} |",
        f"|{'---|' * (2 + len(COUNTS))}",
    ]
    for row in found["waste"]:
        shares = [row["batches"], *(row["padding"][str(count)] for count in COUNTS)]
        lines.append(f"| {row['rule']} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |")
    lines += [
        "",
        f"`{found['command']}`: {found['waste'][0]['images']} photographs of COCO. Three buckets are:",
        "",
    ]
    for row in found["waste"]:
        said = ", ".join(f"{height}×{width}" for height, width in row["buckets"]["3"])
        lines.append(f"* {row['rule']}: {said} (height×width)")
    return "\n".join(lines)


def accuracy_table(found: dict[str, Any]) -> str:
    """One line a way to make tensors: padding and AP on both kinds of scenes."""
    lines = [
        "| tensors | cut: padding | AP | AP, no mask | stretched: padding | AP | AP, no mask |",
        f"|{'---|' * 7}",
    ]
    by_kind = {
        how: {row["tensors"]: row for row in found["accuracy"] if row["scenes"] == how} for how in SCENES
    }
    for name in by_kind["cut"]:
        cells = []
        for how in ("cut", "stretched"):
            row = by_kind[how][name]
            cells += ["–" if "padding" not in row else f"{100 * row['padding']:.1f} %", f"{row['ap']:.3f}"]
            cells.append(f"{row['unmasked']['ap']:.3f}" if "unmasked" in row else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{found['command']}` on {environment_text(found['environment'])}."])


def page_with_tables(page: str) -> str:
    """The page with the tables of the committed results between their marks."""
    found = results()
    page = with_section(page, "waste", waste_table(found))
    return with_section(page, "accuracy", accuracy_table(found))


if __name__ == "__main__":
    main()
