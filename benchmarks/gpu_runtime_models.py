"""ViT-B/16 and DETR-R50 (800×1333) with random weights: as exported, and as Vitesse writes them for ONNX Runtime's CUDA
provider, in FP32 and FP16."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
from peers_models import MODELS

from vitesse import stages
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends import backend
from vitesse.export.torch_onnx import trace
from vitesse.metadata import serialise
from vitesse.precision.half import to_half
from vitesse.precision.half_casts import HalfGraph
from vitesse.recipe import HalfOptions
from vitesse.spec import spec_from_mapping
from vitesse.storage import sha256_of

# The sizes that the published figures of these models are for.
SIZES: Mapping[str, tuple[int, int]] = {"vit_b16": (224, 224), "detr_r50": (800, 1333)}
# What a user has without Vitesse, and what Vitesse makes of it; the parts of a file's name.
PLAIN, OURS = "plain", "ours"
PRECISIONS = ("fp32", "fp16")


def make(name: str, folder: Path) -> None:
    """Write NAME_plain_fp32.onnx and the three others, and NAME.json with the spec; needs torch."""
    folder.mkdir(parents=True, exist_ok=True)
    model = replace(MODELS[name], size=SIZES[name])
    network = model.make(folder, model.options)
    exported = path_of(folder, name, PLAIN, "fp32")
    exported.write_bytes(serialise(trace(network, model.options), network.spec))
    source = stages.open_model(exported)
    spec = source.spec
    # Everything in FP16 and nothing else: what a converter does that knows no activations.
    half = HalfGraph(onnx.load(exported)).written()
    path_of(folder, name, PLAIN, "fp16").write_bytes(serialise(half, spec))
    store = Store(folder / "store")
    fused = stages.fuse(stages.clean(source, store).artifact, store).artifact
    graphs = {
        "fp32": fused,
        "fp16": to_half(fused, store, None, HalfOptions(images=2, allow_random=True)).artifact,
    }
    for precision, graph in graphs.items():
        built = backend("cuda").build(graph, store)
        print(name, precision, dict(built.changes), *built.notes)
        path_of(folder, name, OURS, precision).write_bytes(built.artifact.path.read_bytes())
    (folder / f"{name}.json").write_text(spec.to_json())


def path_of(folder: Path, name: str, whose: str, precision: str) -> Path:
    return folder / f"{name}_{whose}_{precision}.onnx"


def artifact(folder: Path, name: str, whose: str, precision: str) -> Artifact:
    path = path_of(folder, name, whose, precision)
    spec = spec_from_mapping(json.loads((folder / f"{name}.json").read_text()))
    return Artifact(path, sha256_of(path), path.stat().st_size, spec, Provenance(whose), "cuda")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(SIZES))
    given = parser.parse_args()
    for chosen in given.names or list(SIZES):
        make(chosen, given.folder)
