"""`vitesse export`: any model → one ONNX file at the path the user names, verified and with its spec inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.errors import UsageError
from vitesse.export.exporting import export_source
from vitesse.progress import Progress
from vitesse.recipe import Recipe
from vitesse.sources.opening import is_onnx
from vitesse.storage import write_atomically


def export_to(
    path: Path,
    model: str | Path,
    recipe: Recipe,
    *,
    keep_aux: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Write `path` once the graph was found right; an older file there survives any failure.

    A model that is ONNX already is written as it is, with its spec, so that `recipe.lower` can be applied to it.

    Args:
        recipe: its preset, spec, source and lower are used.
        keep_aux: keep the auxiliary outputs of every decoder layer.

    Raises:
        as `stages.open_model`; UsageError also for a path that is not .onnx, StorageError when it cannot be written.
    """
    if path.suffix != ".onnx":
        raise UsageError(f"--out {path}", expected="a path that ends in .onnx", fix=f"--out {path}.onnx")
    with TemporaryDirectory(prefix="vitesse-") as temporary:
        store = Store(Path(temporary))
        if is_onnx(model):
            if keep_aux:
                raise UsageError(f"--keep-aux with {model}", expected="a source that is not ONNX yet")
            artifact = stages.open_model(model, preset=recipe.preset, spec=recipe.spec)
        else:
            options = replace(stages.export_options(recipe.source), keep_aux=keep_aux)
            source = stages.open_exportable(
                model, preset=recipe.preset, spec=recipe.spec, options=recipe.source, progress=progress
            )
            artifact = export_source(source, options, progress).put(store)
        how = artifact.provenance
        if recipe.lower:
            artifact = stages.lower(artifact, recipe.lower, store).artifact
        content = artifact.path.read_bytes()
    write_atomically(path, content)
    return replace(artifact, path=path, provenance=how)
