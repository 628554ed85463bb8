"""What FP8 costs on labelled images: top-1 of vit_fashion in every precision, on the target itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.protocol import Tensors
from vitesse.backends.torch_cuda.building import BuildOptions
from vitesse.data.dataset import open_calibration, open_dataset
from vitesse.precision.half import to_half
from vitesse.precision.half_quantised import to_half_quantised
from vitesse.recipe import HalfOptions, Int8Options
from vitesse.verify.accuracy import evaluate

from .ours import FULL, TARGET, Effort

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/fashion"
MODEL = EXAMPLES / "vit_fashion.onnx"
BATCH = 32
# How ranges are chosen. Percentiles, the default, cut values off to have smaller steps for the others; E4M3 has small
# steps for small values anyway.
METHOD = "mse"


def measure(images: Path, folder: Path, target: str, effort: Effort = FULL) -> dict[str, Any]:
    """Top-1 in each precision on a target, and of FP32 on ONNX Runtime's CPU provider as the reference.

    Args:
        images: a data set with labels: a folder of folders, one for each class, or one with such a `val`.
        effort: of the builds for `torch-cuda`, which are for the one batch that is scored.
    """
    store = Store(folder / "store")
    made = artifacts(store)
    split = open_dataset(images, spec=made["fp32"].spec).val

    def top1(artifact: Artifact, runtime: str) -> float:
        built = artifact if runtime == artifact.backend else _built(artifact, store, runtime, effort)
        with backend(runtime).load(built) as engine, engine.session() as session:

            def predict(feeds: Tensors) -> Mapping[str, np.ndarray]:
                return {name: np.array(value) for name, value in session.run(feeds).outputs.items()}

            return evaluate(predict, split, artifact.spec, batch=BATCH).accuracy.value

    reference = top1(made["fp32"], "onnxruntime")
    found = {precision: top1(artifact, target) for precision, artifact in made.items()}
    return {
        "images": len(split),
        "reference": reference,
        "top1": found,
        "loss_points": {precision: round(100 * (reference - value), 4) for precision, value in found.items()},
    }


def _built(artifact: Artifact, store: Store, runtime: str, effort: Effort) -> Artifact:
    target: Any = backend(runtime)
    if runtime != TARGET:
        return target.build(artifact, store).artifact
    options = BuildOptions(batch=(BATCH, BATCH, BATCH), tactics=effort.tactics, seconds=effort.seconds)
    return target.build_for(artifact, store, options).artifact


def artifacts(store: Store) -> dict[str, Artifact]:
    """vit_fashion fused in FP32, in FP16, and in FP8 with FP16, calibrated on the images beside the examples."""
    fused = stages.fuse(stages.clean(stages.open_model(MODEL), store).artifact, store).artifact
    calibration = open_calibration(EXAMPLES / "vit/calib")
    half = to_half(fused, store, stages.CalibrationFeeds(calibration, fused.spec), HalfOptions())
    options = Int8Options(method=METHOD, activations="int8")
    eight = stages.quantize(fused, calibration, store, number="fp8", options=options)
    mixed = to_half_quantised(eight, store, (), HalfOptions(), stage="fp8+fp16")
    return {"fp32": fused, "fp16": half.artifact, "fp8": mixed.artifact}
