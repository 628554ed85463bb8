"""Many runs over changing batch sizes and image sizes, on several streams: does memory stay what it was?"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Session, Tensors
from vitesse.benchmark.memory_meter import MemoryMeter
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.spec_file import find_spec
from vitesse.spec import ModelSpec
from vitesse.storage import sha256_of

BATCHES = (1, 2, 3, 4)
SIDES = (160, 224, 288)
STREAMS = 4
# Runs of one shape before the next comes.
STRETCH = 400
SAMPLES = 200
Shape = tuple[int, int, int, int]


def soak(path: Path, runs: int) -> dict[str, Any]:
    """Run a model with free batch, and height and width where they are free; sample the process's memory on
    the device and on the host, in MB.

    Every stream begins with each shape once; then they come in random order, each for a while, as cameras do: at
    every change of the image size the runtime plans its convolutions anew. Every answer of every stream is checked
    against the first one of its shape.
    """
    spec = find_spec(load_onnx(path), preset=None, spec_file=None)
    artifact = Artifact(path, sha256_of(path), path.stat().st_size, spec, Provenance("soak"), "cuda")
    with MemoryMeter(0) as meter, backend("cuda").load(artifact, LoadOptions()) as engine:
        image = next(info for info in engine.inputs if info.name == spec.image_input)
        watched = Watched(spec, shapes_of(image.shape), runs, meter)
        began = time.perf_counter()
        with ThreadPoolExecutor(STREAMS) as pool:
            sessions = [engine.session() for _ in range(STREAMS)]
            for done in [
                pool.submit(watched.stream, number, session) for number, session in enumerate(sessions)
            ]:
                done.result()
        seconds = time.perf_counter() - began
        graphs = [session.graphs for session in sessions]
        without = sessions[0].without_graph
        for session in sessions:
            session.close()
    return {
        "runs": watched.done,
        "streams": STREAMS,
        "seconds": round(seconds, 1),
        "shapes": len(watched.shapes),
        "graphs": sum(graphs),
        "without_graph": without,
        "wrong": watched.wrong,
        "unit": ["run", "device MB", "host MB"],
        "curve": watched.curve,
    }


def shapes_of(free: tuple[int | str, ...]) -> list[Shape]:
    """Every batch with every size that the input takes."""
    _, channels, high, wide = free
    if isinstance(high, int) and isinstance(wide, int):
        return [(batch, int(channels), high, wide) for batch in range(1, 17)]
    return [(batch, 3, high, wide) for batch in BATCHES for high in SIDES for wide in SIDES]


class Watched:
    """The runs of all streams, their answers, and the memory meanwhile."""

    def __init__(self, spec: ModelSpec, shapes: list[Shape], runs: int, meter: MemoryMeter) -> None:
        self.spec, self.shapes, self.runs, self._meter = spec, shapes, runs, meter
        self.done = self.wrong = 0
        self.curve: list[list[float]] = []
        most = max(int(np.prod(shape)) for shape in shapes)
        self._pixels = np.random.default_rng(0).standard_normal(most).astype(np.float32)
        self._first: dict[Shape, dict[str, np.ndarray]] = {}
        self._lock = Lock()

    def stream(self, number: int, session: Session) -> None:
        order = random.Random(number)
        for turn in range(self.runs // STREAMS):
            if turn < len(self.shapes):
                shape = self.shapes[turn]
            elif turn % STRETCH == 0:
                shape = order.choice(self.shapes)
            outputs = session.run(self._feeds(shape)).outputs
            with self._lock:
                known = self._first.setdefault(shape, {name: value.copy() for name, value in outputs.items()})
            wrong = any(not np.allclose(outputs[name], known[name], atol=2e-3) for name in known)
            self._count(wrong)

    def _feeds(self, shape: Shape) -> Tensors:
        feeds: dict[str, np.ndarray] = {self.spec.image_input: self._pixels[: np.prod(shape)].reshape(shape)}
        if self.spec.valid_size_input is not None:
            feeds[self.spec.valid_size_input] = np.array([shape[2:]] * shape[0], np.int64)
        return feeds

    def _count(self, wrong: bool) -> None:
        with self._lock:
            turn, self.done, self.wrong = self.done, self.done + 1, self.wrong + wrong
            if turn % (self.runs // SAMPLES or 1) == 0 or turn == self.runs - 1:
                device, host = self._meter.device_mb(), self._meter.host_mb()
                self.curve.append([turn, round(device or 0.0, 1), round(host or 0.0, 1)])
                print(*self.curve[-1], f"{self.wrong} wrong", flush=True)
