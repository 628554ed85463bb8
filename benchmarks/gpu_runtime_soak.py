"""Many runs over changing batch sizes and image sizes: does memory stay what it was?"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.cuda.bindings import cuda_driver
from vitesse.backends.protocol import LoadOptions
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.spec_file import find_spec
from vitesse.storage import sha256_of

BATCHES = (1, 2, 3, 4)
SIDES = (128, 160, 192, 224, 256, 288)
SAMPLES = 200


def soak(path: Path, runs: int) -> dict[str, Any]:
    """Run a model with free batch, height and width; sample device memory (whole GPU) and resident host memory, in MB.

    The shapes come in random order, all of them early on; every answer is checked against the first one of its shape.
    """
    spec = find_spec(load_onnx(path), preset=None, spec_file=None)
    artifact = Artifact(path, sha256_of(path), path.stat().st_size, spec, Provenance("soak"), "cuda")
    order = random.Random(0)
    shapes = [(batch, 3, high, wide) for batch in BATCHES for high in SIDES for wide in SIDES]
    pixels = np.random.default_rng(0).standard_normal(4 * 3 * max(SIDES) ** 2).astype(np.float32)
    driver, process = cuda_driver(), psutil.Process()
    curve, first, wrong = [], {}, 0
    with backend("cuda").load(artifact, LoadOptions()) as engine, engine.session() as session:
        began = time.perf_counter()
        for turn in range(runs):
            shape = shapes[turn] if turn < len(shapes) else order.choice(shapes)
            feeds = {spec.image_input: pixels[: np.prod(shape)].reshape(shape)}
            if spec.valid_size_input is not None:
                feeds[spec.valid_size_input] = np.array([shape[2:]] * shape[0], np.int64)
            outputs = session.run(feeds).outputs
            answer = {name: array.copy() for name, array in outputs.items()}
            known = first.setdefault(shape, answer)
            wrong += any(not np.allclose(answer[name], known[name], atol=2e-3) for name in known)
            if turn % (runs // SAMPLES or 1) == 0 or turn == runs - 1:
                free, total = driver.memory()
                curve.append([turn, (total - free) / 1e6, process.memory_info().rss / 1e6])
        seconds = time.perf_counter() - began
        graphs = session.graphs
    return {
        "runs": runs,
        "seconds": round(seconds, 1),
        "shapes": len(shapes),
        "graphs": graphs,
        "wrong": wrong,
        "unit": ["run", "device MB", "host MB"],
        "curve": [[turn, round(device, 1), round(host, 1)] for turn, device, host in curve],
    }
