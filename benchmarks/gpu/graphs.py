"""The ONNX graphs of the table, made where they are run: fused, in FP32, FP16, and FP8 with FP16."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx

from vitesse import stages
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.metadata import serialise
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.half_quantised import to_half_quantised
from vitesse.precision.quantize import quantize
from vitesse.precision.ranges import Ranges
from vitesse.recipe import HalfOptions, Int8Options
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.source import ExportOptions
from vitesse.spec import spec_from_mapping
from vitesse.storage import sha256_of

from .models import INPUT, MODELS, Model, traced
from .repeat import repeated

PRECISIONS = ("fp32", "fp16", "fp8")
CALIBRATION_IMAGES = 4
# What later copies of a block make is larger than what the calibrated first one does: more so, the deeper. E4M3 is a
# floating point format, which loses no digits by a range that is wider than needed.
HEADROOM = 8.0


def make(name: str, precisions: Sequence[str], folder: Path) -> float:
    """Write NAME_PRECISION.onnx for each precision, and NAME.spec.json; return the seconds that it took."""
    from vitesse.export.torch_onnx import trace

    began = time.perf_counter()
    model = MODELS[name]
    store = Store(folder / f"store_{name}")
    network = traced(model)
    exported = folder / f"{name}_traced.onnx"
    exported.parent.mkdir(parents=True, exist_ok=True)
    exported.write_bytes(serialise(trace(network, ExportOptions(size=model.size)), network.spec))
    fused = stages.fuse(stages.clean(stages.open_model(exported), store).artifact, store).artifact
    for precision in precisions:
        graph = _in(precision, model, fused, store)
        if model.blocks:
            graph = repeated(graph, model.blocks)
        path_of(folder, name, precision).write_bytes(serialise(graph, fused.spec))
    (folder / f"{name}.spec.json").write_text(fused.spec.to_json())
    return time.perf_counter() - began


def _in(precision: str, model: Model, fused: Artifact, store: Store) -> onnx.ModelProto:
    """The graph in a precision; without islands, for what random weights need says nothing of a trained model."""
    if precision == "fp32":
        return load_onnx(fused.path)
    if precision == "fp16":
        return HalfGraph(load_onnx(fused.path)).written()
    random = np.random.default_rng(1)
    shape = (1, 3, *model.size)
    feeds = [{INPUT: random.standard_normal(shape, np.float32)} for _ in range(CALIBRATION_IMAGES)]
    # A correction of the first block's biases would be wrong for its copies, whose matrices are rotated.
    options = Int8Options(activations="int8", bias_correction=False)
    found = calibrate_graph(fused, store, feeds, options, symmetric=True)
    names = [layer.name for layer in found.layers]
    ranges = _widened(found.ranges) if model.blocks else found.ranges
    made = quantize(found.artifact, store, names, ranges, options, number="fp8", stage="fp8")
    return load_onnx(to_half_quantised(made, store, (), HalfOptions(), stage="fp8+fp16").artifact.path)


def _widened(ranges: Ranges) -> Ranges:
    wide = {name: (HEADROOM * low, HEADROOM * high) for name, (low, high) in ranges.by_tensor.items()}
    return replace(ranges, by_tensor=wide)


def path_of(folder: Path, name: str, precision: str) -> Path:
    return folder / f"{name}_{precision}.onnx"


def artifact(folder: Path, name: str, precision: str) -> Artifact:
    """The artifact of a graph that `make` wrote."""
    path = path_of(folder, name, precision)
    spec = spec_from_mapping(json.loads((folder / f"{name}.spec.json").read_text()))
    return Artifact(path, sha256_of(path), path.stat().st_size, spec, Provenance(precision))


def make_all(wanted: dict[str, set[str]], folder: Path) -> dict[str, float | str]:
    """Make the graphs of all models at once, a process each; model → seconds, or why there is none."""
    missing = {
        name: [one for one in PRECISIONS if one in precisions]
        for name, precisions in wanted.items()
        if not all(path_of(folder, name, one).is_file() for one in precisions)
    }
    if not missing:
        return {}
    # CUDA may be in use here, so that forked processes would be broken.
    with ProcessPoolExecutor(len(missing), get_context("spawn")) as pool:
        futures = {name: pool.submit(make, name, some, folder) for name, some in missing.items()}
        return {name: _seconds(future) for name, future in futures.items()}


def _seconds(future: Future[float]) -> float | str:
    try:
        return round(future.result(), 1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
