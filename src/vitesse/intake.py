"""What a run begins with: the model opened or exported, the data, and a folder that is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import home_of
from vitesse.data.dataset import Dataset, open_dataset
from vitesse.environment import describe, stable
from vitesse.export.exporting import export_source
from vitesse.metadata import serialise
from vitesse.progress import Progress
from vitesse.recipe import Recipe
from vitesse.run import RunFolder, key_of
from vitesse.sources.external_data import external_tensors
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.opening import is_onnx
from vitesse.sources.source import Source

Model = str | Path | Artifact | Source


@dataclass(frozen=True)
class Intake:
    """The untouched model as it lies in the run, the data, and the folder that was claimed for both."""

    artifact: Artifact
    dataset: Dataset
    folder: RunFolder


def take_in(
    model: Model, recipe: Recipe, data: Path, out: Path, progress: Progress, holdout: float
) -> Intake:
    """Open or export the model, open the data, claim the folder and copy the model into it.

    The copy is the reference to compare with and to go back to. `holdout` is the share of images kept for calibration
    where the data has none of its own.

    Raises:
        ModelError, SpecError, DataError, RunFolderError, UsageError, MissingExtra, StorageError, NotVerified: each says
            what came, what was expected and what to do; the folder is as it was.
    """
    folder = RunFolder(out, home_of(recipe.target))
    with TemporaryDirectory(prefix="vitesse-") as temporary:
        artifact, key = _opened(model, recipe, folder, Store(Path(temporary)), progress)
        dataset = open_dataset(data, recipe.data.calib_data, spec=artifact.spec, holdout=holdout)
        folder.claim(artifact.sha256, images_of(dataset), artifact.spec)
        artifact = _copied(artifact, folder.store)
    if key:
        folder.keep_export(key, artifact)
    return Intake(artifact, dataset, folder)


def name_of(model: Model) -> str:
    """Return what the ledger calls the model."""
    if isinstance(model, str | Path):
        return str(model)
    return str(model.path) if isinstance(model, Artifact) else model.title


def story_of(artifact: Artifact) -> tuple[str, ...]:
    """Return how an exported model became ONNX, as notes for the ledger; nothing for a file that was ONNX."""
    return tuple(f"{name}: {value}" for name, value in artifact.provenance.options.items())


def images_of(dataset: Dataset) -> str:
    """Hash which images a data set has, whatever their split: with INT8 some are held out, without none."""
    samples = (*dataset.val.samples, *dataset.calib.samples)
    return key_of(sorted((sample.path.name, sample.path.stat().st_size) for sample in samples))


def _opened(
    model: Model, recipe: Recipe, folder: RunFolder, store: Store, progress: Progress
) -> tuple[Artifact, str]:
    """Open an ONNX file where it lies; export anything else into `store`, unless `folder` has that very export.

    Returns:
        (the artifact, the key to keep the export under; empty where nothing was exported).
    """
    if isinstance(model, Artifact):
        return model, ""
    if isinstance(model, str | Path) and is_onnx(model):
        return stages.open_model(model, preset=recipe.preset, spec=recipe.spec), ""
    options = stages.export_options(recipe.source)
    if isinstance(model, str | Path):
        model = stages.open_exportable(
            model, preset=recipe.preset, spec=recipe.spec, options=recipe.source, progress=progress
        )
    key = key_of((model.identity, repr(options), stable(describe())))
    kept = folder.exported(key)
    return kept or export_source(model, options, progress).put(store), key


def _copied(artifact: Artifact, store: Store) -> Artifact:
    """Copy the model into the run; a file with external data becomes one file."""
    content = artifact.path.read_bytes()
    if external_tensors(onnx.load_from_string(content)):
        content = serialise(load_onnx(artifact.path), artifact.spec)
    return store.put(content, artifact.spec, artifact.provenance, suffix=".onnx")
