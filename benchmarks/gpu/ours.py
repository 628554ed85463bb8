"""The target `torch-cuda` as a candidate: built once a model and precision, loaded, called on tensors on the GPU."""

from __future__ import annotations

import json
import os
import sys
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
from .apart import run_apart
from .models import INPUT
from .peers import Candidate

TARGET = "torch-cuda"
MADE = "made.json"


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


def build_apart(
    folder: Path, name: str, precision: str, batches: Sequence[int], effort: Effort, limit_s: float
) -> float | str:
    """Build in a process of its own, for `known` to find; seconds, or why not."""
    numbers = [*map(str, batches), str(effort.tactics), str(effort.seconds)]
    return run_apart("benchmarks.gpu.ours", [str(folder), name, precision, *numbers], limit_s)


def known(folder: Path, name: str, precision: str) -> Made | None:
    """What `build_apart` made."""
    artifact, path = last_built(folder, name, precision), _store(folder, name, precision) / MADE
    if artifact is None or not path.is_file():
        return None
    said = json.loads(path.read_text())
    return Made(artifact, said["build_s"], said["changes"], tuple(said["notes"]))


def main(arguments: Sequence[str]) -> None:
    folder, name, precision, *batches = arguments[:-2]
    effort = Effort(int(arguments[-2]), float(arguments[-1]))
    made = build(Path(folder), name, precision, [int(one) for one in batches], effort)
    (_store(Path(folder), name, precision) / MADE).write_text(json.dumps(made.to_json()))


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
        about = {"graphs": runner.graphs, "notes": list(getattr(engine, "notes", ()))}
        planned: Any = engine
        yield Candidate(run, stream, about, lambda: [asdict(row) for row in planned.plan(shapes).describe()])


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


if __name__ == "__main__":
    main(sys.argv[1:])
