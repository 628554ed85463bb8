"""What `bench` and `tune` measure: an artifact of a run or an ONNX file, on a target, and what it is fed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import GPUS, targets
from vitesse.backends.protocol import Tensors
from vitesse.data.dataset import open_dataset
from vitesse.data.images import Pixels, decode_image
from vitesse.data.preprocess import feeds
from vitesse.engines import ENGINES, engine_for
from vitesse.errors import UsageError
from vitesse.profile.calls import random_images
from vitesse.run import Run, artifact_of, open_run, spec_of
from vitesse.selection import keeps_accuracy, select
from vitesse.spec import ModelSpec

# More would only take memory: time hardly depends on the picture.
_IMAGES = 16


@dataclass(frozen=True)
class Subject:
    """An artifact set to run on the target; `folder` is its run's, None for a file; `why` says how it was found."""

    artifact: Artifact
    folder: Path | None
    why: str


@contextmanager
def subject(given: Path, target: str, stage: str = "", preset: str | None = None) -> Iterator[Subject]:
    """Yield what is to be measured; what has to be built for it on the way lives as long as the block.

    Args:
        given: a run folder, or an .onnx file.
        stage: a step of the run instead of the chosen one.
        preset: how to feed a foreign ONNX file.

    Raises:
        UsageError: a stage for a file, a preset for a run, or nothing of the run is for the target.
        BackendError: the runtime refuses the graph. RunFolderError, ModelError, SpecError: as opening them.
    """
    runtime = targets(target)[0]
    if (given / "ledger.json").is_file():
        if preset is not None:
            raise UsageError(f"--preset {preset} with the run {given}", expected="it with an .onnx file only")
        yield _of_run(open_run(given), target, runtime, stage)
        return
    if stage:
        raise UsageError(f"--stage {stage} with {given}", expected="it with a run folder only")
    opened = stages.open_model(given, preset=preset)
    with TemporaryDirectory(prefix="vitesse-") as temporary:
        built = stages.build(opened, runtime, Store(Path(temporary))).artifact
        yield Subject(built, None, f"{given.name}, built for {runtime}")


@dataclass(frozen=True)
class Fed:
    """Batches of any size, made of a few images over and over; `note` says which."""

    spec: ModelSpec
    images: tuple[Pixels, ...]
    note: str

    def __call__(self, batch: int) -> Tensors:
        """Return what one call is fed with: a batch of that many images."""
        return feeds(list(islice(cycle(self.images), batch)), self.spec)


def fed_with(spec: ModelSpec, data: Path | None) -> Fed:
    """Return batches of the images in a folder, or of random ones of the model's size.

    Raises:
        DataError: no images there, or one that cannot be read.
    """
    if data is None:
        note = "fed with random images of the model's size: speed does not depend on what they show"
        return Fed(spec, tuple(random_images(spec)), note)
    samples = open_dataset(data, holdout=0.0).val.spread(_IMAGES).samples
    return Fed(spec, tuple(decode_image(sample.path) for sample in samples), f"fed with images of {data}")


def _of_run(run: Run, target: str, runtime: str, stage: str) -> Subject:
    if target in GPUS and target != "cuda":
        return Subject(
            engine_for(run, target, stage), run.folder, f"the newest engine of the run for {target}"
        )
    selected = select(run, target, stage)
    if target in GPUS:
        # ONNX Runtime's CUDA provider takes the portable graph in forms of its own; unchanged files keep their hash.
        built = stages.build(selected.artifact, runtime, Store(run.folder / ENGINES)).artifact
        return Subject(built, run.folder, f"{selected.row.stage}: {selected.why}")
    if selected.artifact.backend in targets(target):
        return Subject(selected.artifact, run.folder, f"{selected.row.stage}: {selected.why}")
    rows = [
        row
        for row in run.ledger.rows
        if row.artifact is not None and row.artifact.backend == runtime and keeps_accuracy(run, row)
    ]
    if stage or not rows:
        backend = selected.artifact.backend
        raise UsageError(
            f"{selected.row.stage} of {run.folder} was made for {backend}, not for {target}",
            expected=f"a step made for {runtime}: {', '.join(row.stage for row in rows) or 'the run has none'}",
            fix=f"--target {backend}, or `vitesse optimize … --target {target}`",
        )
    best = min(rows, key=lambda row: float("inf") if row.latency_ms is None else row.latency_ms.p50)
    artifact = artifact_of(run.folder, best, spec_of(run.folder))
    return Subject(artifact, run.folder, f"{best.stage}: the fastest step of the run for {runtime}")
