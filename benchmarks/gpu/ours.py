"""The target `torch-cuda` as a candidate: built once a model and precision, loaded, called on tensors on the GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.torch_cuda.archive import SUFFIX
from vitesse.backends.torch_cuda.building import BuildOptions
from vitesse.backends.torch_cuda.tactics import MOST_TACTICS
from vitesse.benchmark.fresh_process import fresh_process
from vitesse.storage import sha256_of

from . import graphs
from .models import INPUT
from .peers import Candidate

TARGET = "torch-cuda"


@dataclass(frozen=True)
class Made:
    """An artifact of the target, the seconds that building took, and what was said."""

    artifact: Artifact
    seconds: float
    changes: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "build_s": round(self.seconds, 1),
            "artifact_mb": round(self.artifact.bytes / 1e6, 1),
            "changes": self.changes,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Effort:
    """How much a build tries: tactics of each kernel, and seconds of measuring for each step."""

    tactics: int = MOST_TACTICS
    seconds: float = BuildOptions.seconds


FULL = Effort()


def build(folder: Path, name: str, precision: str, batches: Sequence[int], effort: Effort = FULL) -> Made:
    """Build for three batches at most: the smallest, the one in the middle and the largest of those given."""
    source = graphs.artifact(folder, name, precision)
    some = sorted(batches)
    options = BuildOptions(
        batch=(some[0], some[len(some) // 2], some[-1]), tactics=effort.tactics, seconds=effort.seconds
    )
    runtime: Any = backend(TARGET)
    began = time.perf_counter()
    built = runtime.build_for(source, Store(_store(folder, name, precision)), options)
    return Made(built.artifact, time.perf_counter() - began, dict(built.changes), built.notes)


def last_built(folder: Path, name: str, precision: str) -> Artifact | None:
    """The artifact that `build` left in the folder last, for whatever batches; None where there is none."""
    left = sorted(_store(folder, name, precision).glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    if not left:
        return None
    path, source = left[-1], graphs.artifact(folder, name, precision)
    return replace(source, path=path, sha256=sha256_of(path), bytes=path.stat().st_size, backend=TARGET)


def _store(folder: Path, name: str, precision: str) -> Path:
    return folder / f"built_{name}_{precision}"


def label_of(precision: str) -> str:
    return f"{TARGET} {precision}"


@contextmanager
def opened(artifact: Artifact, images: Tensor) -> Iterator[Candidate]:
    """The artifact on images that lie where its CUDA graph reads them, as those of the peers do."""
    shapes = {INPUT: tuple(images.shape)}
    with backend(TARGET).load(artifact) as engine, engine.session() as session:
        runner: Any = session
        feeds = runner.inputs_for(shapes)
        feeds[INPUT].copy_(images)
        names = [one.name for one in engine.outputs]

        def run() -> tuple[Tensor, ...]:
            made = runner.run_on_device(feeds)
            return tuple(made[name] for name in names)

        run()
        # Its own stream waits for the current one, and the current one for it.
        stream = torch.cuda.current_stream() if images.is_cuda else None
        yield Candidate(run, stream, {"graphs": runner.graphs, "notes": list(getattr(engine, "notes", ()))})


def steps(artifact: Artifact, images: Tensor) -> list[dict[str, Any]]:
    """What the plan for these images says of its nodes: step, tactic, and what the tactic took when it was chosen."""
    with backend(TARGET).load(artifact) as engine:
        planned: Any = engine
        return [asdict(row) for row in planned.plan({INPUT: tuple(images.shape)}).describe()]


def load_times(artifact: Artifact, images: Tensor) -> dict[str, Any]:
    """Loading and first call in fresh processes: with an empty cache of Triton's kernels, and with the one it left."""
    feeds = [{INPUT: images.cpu().numpy()}]
    before = os.environ.get("TRITON_CACHE_DIR")
    with TemporaryDirectory(prefix="vitesse-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        try:
            found = {kind: asdict(fresh_process(artifact, feeds)) for kind in ("empty", "filled")}
        finally:
            del os.environ["TRITON_CACHE_DIR"]
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before
    return found
