"""What `vitesse serve --fast-decode` costs in accuracy and saves in time, against decoding every pixel.

    python benchmarks/fast_decode.py [--limit N]

It writes benchmarks/results/fast_decode.json and the table in docs/serving.md.

A JPEG is reduced only where its sides are at least twice what the model takes. The pictures at hand are smaller than
a camera's, so each is enlarged (Lanczos) by a whole factor, its boxes with it, and stored as a JPEG of quality 90; both
ways of decoding get the same file. Accuracy is COCO AP in points; seconds are of one core, decoding and making the
tensor, both ways in turns.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from ledgers import DATA, ROOT, environment_text, with_section
from PIL import Image

from vitesse import stages
from vitesse.artifact import Artifact
from vitesse.backends.protocol import LoadOptions, Session
from vitesse.data.dataset import open_dataset
from vitesse.data.images import Pixels
from vitesse.data.results import Detections, Result
from vitesse.data.split import Split
from vitesse.environment import describe
from vitesse.measure import Candidate, opened
from vitesse.serve.answers import results_of
from vitesse.serve.images import feeds_of, picture_of
from vitesse.serve.limits import Limits
from vitesse.spec import ModelSpec, Resize
from vitesse.verify.accuracy import score

RESULTS = ROOT / "benchmarks" / "results" / "fast_decode.json"
PAGE = ROOT / "docs" / "serving.md"
FACTORS = (1, 2, 3, 4)
WAYS = ("full", "fast")


def subjects() -> Iterator[tuple[str, Artifact, Split]]:
    """Title, model and labelled images."""
    deimv2 = stages.open_model(DATA / "deimv2/deimv2_hgnetv2_atto_coco.onnx", preset="deimv2")
    photos = open_dataset(DATA / "coco_ccby", spec=deimv2.spec, holdout=0).val
    yield "DEIMv2-Atto, photos", deimv2, photos
    detr = stages.open_model(ROOT / "examples/fashion/detr_fashion.onnx")
    # The example's own rules take 256×256 only.
    rules = replace(detr.spec.preprocessing, resize=Resize.STRETCH)
    detr = replace(detr, spec=replace(detr.spec, preprocessing=rules))
    scenes = open_dataset(DATA / "detr_fashion", spec=detr.spec).val
    yield "detr_fashion, scenes", detr, scenes


def enlarged(pixels: Pixels, factor: int) -> bytes:
    """Return a JPEG of the picture, `factor` times as wide and as high."""
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels).resize((factor * width, factor * height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def measured(session: Session, spec: ModelSpec, split: Split, factor: int) -> dict[str, Any]:
    """Accuracy (0..1) and milliseconds per image of both ways on one size, and how many pictures were reduced."""
    results: dict[str, list[Result]] = {way: [] for way in WAYS}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    reduced = 0
    for number, (_, pixels) in enumerate(split):
        body = enlarged(pixels, factor)
        for way in WAYS if number % 2 else reversed(WAYS):
            began = time.process_time()
            picture = picture_of(body, Limits(), reduced_for=spec if way == "fast" else None)
            fed = feeds_of([picture.pixels], spec)
            spent[way].append(1e3 * (time.process_time() - began))
            found = results_of(session.run(fed).outputs, spec, [picture])[0]
            assert isinstance(found, Detections)
            results[way].append(replace(found, boxes_xyxy=found.boxes_xyxy / np.float32(factor)))
            reduced += picture.pixels.shape[:2] != picture.size
    ap = {way: score(results[way], split, spec).value for way in WAYS}
    return {
        "factor": factor,
        "images": len(split),
        "reduced": reduced,
        "ap": ap,
        "decode_ms": {way: statistics.median(spent[way]) for way in WAYS},
        "samples_ms": {way: [round(one, 3) for one in spent[way]] for way in WAYS},
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| model, images | sides × | reduced | AP full | AP fast | difference, points | CPU full, ms | CPU fast, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found["results"]:
        full, fast = (100 * one["ap"][way] for way in WAYS)
        spent = one["decode_ms"]
        lines.append(
            f"| {one['model']} | {one['factor']} | {one['reduced']} of {one['images']} | {full:.2f} | {fast:.2f} | "
            f"{fast - full:+.2f} | {spent['full']:.1f} | {spent['fast']:.1f} |"
        )
    return "\n".join([*lines, "", f"`{found['command']}`; {environment_text(found['environment'])}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="images of each set at most (default: all)")
    limit = parser.parse_args().limit
    results = []
    for title, artifact, split in subjects():
        some = split if limit is None else split.spread(limit)
        with opened(Candidate(artifact, LoadOptions(threads=1))) as session:
            for factor in FACTORS:
                results.append({"model": title, **measured(session, artifact.spec, some, factor)})
                print({key: value for key, value in results[-1].items() if key != "samples_ms"}, flush=True)
    given = "" if limit is None else f" --limit {limit}"
    found = {
        "command": f"python benchmarks/fast_decode.py{given}",
        "environment": describe(),
        "results": results,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(with_section(PAGE.read_text(), "fast-decode", table(found)))


if __name__ == "__main__":
    main()
