"""`vitesse quantize`: any model → one ONNX file with Q/DQ pairs at the path the user names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import Built
from vitesse.data.dataset import open_calibration
from vitesse.data.split import Split
from vitesse.errors import UsageError
from vitesse.precision.half import find_islands
from vitesse.precision.half_quantised import to_half_quantised
from vitesse.precision.layers import blocks_of, layers_of
from vitesse.progress import Progress, Silent
from vitesse.recipe import Recipe
from vitesse.sources.onnx_file import load_onnx
from vitesse.storage import write_atomically


def quantize_to(
    path: Path,
    model: str | Path,
    images: Path,
    recipe: Recipe,
    *,
    number: str = "int8",
    keep: Collection[str] = (),
    half: bool = False,
    progress: Progress | None = None,
) -> tuple[Built, tuple[str, ...]]:
    """Clean, calibrate and quantise a model, and write `path`; an older file there survives any failure.

    Args:
        images: a folder; with `val/` and `calib/` in it, those of `calib/`.
        recipe: what it says of the source, its `lower`, `int8` and number of calibration images are used.
        number, keep: see `stages.quantize`.
        half: write FP16 where the file would have float32, but for islands as `half.find_islands` finds them.

    Returns:
        What was made, and the names of all blocks, for `keep`.

    Raises:
        as `stages.open_model` and `stages.quantize`; UsageError also for a path that is not .onnx, StorageError when it
        cannot be written.
    """
    if path.suffix != ".onnx":
        raise UsageError(f"--out {path}", expected="a path that ends in .onnx", fix=f"--out {path}.onnx")
    progress = progress or Silent()
    split = open_calibration(images).spread(recipe.data.calib_images)
    with TemporaryDirectory(prefix="vitesse-") as temporary:
        store = Store(Path(temporary))
        source = stages.open_model(
            model, preset=recipe.preset, spec=recipe.spec, options=recipe.source, store=store
        )
        graph = stages.clean(source, store).artifact
        if recipe.lower:
            graph = stages.lower(graph, recipe.lower, store).artifact
        progress.stage(number, "calibrating", len(split))
        # Such a file is for GPUs, which have no pairs of products that saturate.
        options = replace(recipe.int8, weight_bits=recipe.int8.weight_bits or 8) if half else recipe.int8
        made = stages.quantize(
            graph, split, store, number=number, keep=keep, options=options, on_image=progress.advance
        )
        if half:
            made = _rest_in_half(made, graph, split, store, recipe, progress)
        content = made.artifact.path.read_bytes()
        blocks = tuple(blocks_of(layers_of(load_onnx(graph.path), attention=recipe.int8.attention)))
    write_atomically(path, content)
    return replace(made, artifact=replace(made.artifact, path=path)), blocks


def _rest_in_half(
    quantised: Built, graph: Artifact, split: Split, store: Store, recipe: Recipe, progress: Progress
) -> Built:
    images = split.spread(recipe.half.images)
    progress.stage("fp16", "looking for what must stay in FP32", len(images))
    feeds = stages.CalibrationFeeds(images, graph.spec, progress.advance)
    islands = find_islands(graph, feeds, recipe.half)
    stage = f"{quantised.artifact.provenance.stage}+fp16"
    made = to_half_quantised(quantised, store, islands.names, recipe.half, stage=stage)
    return replace(made, notes=(*made.notes, *islands.told()))
