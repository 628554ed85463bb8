"""Vitesse's choice beside what else one could run: ViT-B/16 and DETR-R50 with random weights, batch 1, this CPU.

    python benchmarks/peers.py vit_b16 detr_r50 [--seconds S] [--run FOLDER] [--nncf PYTHON]
    python benchmarks/peers.py --table

The first measures all candidates of a model in one interleaved run, as docs/benchmarking.md says, and writes
benchmarks/results/peers_NAME.json: raw samples, environment, operator profiles. The second writes docs/peers.md.
All get the same images and as many threads. Needs torch and a C++ compiler (torch.compile); NNCF may live in a Python
of its own (`--nncf`). Before every block the protocol waits until the process is idle: the threads of torch and ONNX
Runtime go on spinning after a call, and would take the cores from whoever is next. A candidate that fails is named
in the table with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peers_candidates import PEERS, Setting, opened
from peers_models import MODELS, PeerModel, random_images
from peers_table import BASELINE, OURS, PAGE, RESULTS, page_with_tables, tables

from vitesse.artifact import Artifact
from vitesse.benchmark.latency import interleave
from vitesse.data.dataset import open_dataset
from vitesse.environment import describe, usable_cores
from vitesse.errors import VitesseError
from vitesse.export.torch_onnx import trace
from vitesse.metadata import serialise
from vitesse.pipeline import optimize
from vitesse.profile.operators import profile
from vitesse.recipe import DataOptions, MeasureOptions, Recipe, SearchOptions
from vitesse.run import Run, load_options, open_run
from vitesse.stages import CalibrationFeeds, open_model

# Random weights: only speed is compared, so that the accuracy budget is off.
RECIPE = Recipe(
    max_drop=100.0,
    data=DataOptions(limit=4, calib_images=8),
    search=SearchOptions(images=4, minutes=1.5),
    measure=MeasureOptions(seconds=2.0, parity_images=4),
)
PROFILE_RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the interleaved run of a model")
    parser.add_argument(
        "--run", type=Path, help="a finished run of the one model named, instead of a new one"
    )
    parser.add_argument("--nncf", default=sys.executable, metavar="PYTHON", help="the Python that has NNCF")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    names = given.names or list(MODELS)
    if given.run and len(names) != 1:
        parser.error("--run belongs to one model: name it")
    if given.table:
        PAGE.write_text(page_with_tables(PAGE.read_text()))
        return
    for name in names:
        with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
            found = measure(name, Path(folder), given.seconds, given.run, given.nncf)
        result(name).write_text(json.dumps(found) + "\n")
        print(tables(found))


def result(name: str) -> Path:
    return RESULTS / f"peers_{name}.json"


def measure(
    name: str, folder: Path, seconds: float, finished: Path | None, nncf_python: str
) -> dict[str, Any]:
    model, threads = MODELS[name], usable_cores()
    torch.set_num_threads(threads)
    images = random_images(folder / "images", model.size)
    setting = prepared(model, folder, images, threads, nncf_python)
    ours = (
        open_run(finished)
        if finished
        else optimize(setting.exported.path, data=images, out=folder / "run", recipe=RECIPE)
    )
    with ExitStack() as stack:
        sessions, failed = ready(setting, ours, stack)
        run = interleave(sessions, setting.feeds, seconds=seconds)
    return {
        "command": f"python benchmarks/peers.py {name} --seconds {seconds:g}",
        "model": model.title,
        "environment": describe(),
        "threads": threads,
        "chosen": ours.ledger.chosen_row().stage,
        "runtime": ours.artifact.backend,
        "failed": failed,
        "latency": run.to_json(),
        "operators": {
            BASELINE: operators(setting.exported, setting),
            OURS: operators(ours.artifact, setting),
        },
    }


def prepared(model: PeerModel, folder: Path, images: Path, threads: int, nncf_python: str) -> Setting:
    """Make and export the network; prepare the images as its spec says."""
    network = model.make(folder, model.options)
    path = folder / "exported.onnx"
    path.write_bytes(serialise(trace(network, model.options), network.spec))
    source = open_model(path)
    feeds = list(CalibrationFeeds(open_dataset(images, holdout=0).val, network.spec))
    return Setting(model, network, source, feeds, folder, threads, nncf_python)


def ready(setting: Setting, ours: Run, stack: ExitStack) -> tuple[dict[str, Any], dict[str, str]]:
    """Open every candidate; what cannot be is returned with the reason, for other people's tools fail in many ways."""
    sessions: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, make in PEERS.items():
        print(f"{setting.model.title}: {name}", file=sys.stderr)
        try:
            sessions[name] = make(setting, stack)
        except Exception as error:
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    sessions[OURS] = opened(ours.artifact, load_options(ours.ledger.chosen_row()), stack)
    return sessions, failed


def operators(artifact: Artifact, setting: Setting) -> Mapping[str, Any] | str:
    """Where the time goes, or why that cannot be said of this runtime."""
    try:
        return profile(artifact, setting.feeds, threads=setting.threads, runs=PROFILE_RUNS).to_json()
    except VitesseError as error:
        return error.what


if __name__ == "__main__":
    main()
