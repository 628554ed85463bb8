"""Tiny random DETRs, exported, cleaned and fused as a run does it, and what torch answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from fusing import run
from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import Built
from vitesse.compress.lever import Situation, Variant
from vitesse.export.exporting import export_source
from vitesse.recipe import SourceOptions
from vitesse.sources.detr_checkpoint import open_detr
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.source import ExportOptions
from vitesse.spec import ModelSpec

SIZE = (75, 110)
Arrays = dict[str, NDArray[Any]]


def fused(checkpoint: Path, store: Store, size: tuple[int, int] = SIZE, **options: Any) -> Artifact:
    """A checkpoint exported, cleaned and fused."""
    source = open_detr(checkpoint, None)
    exported = export_source(source, ExportOptions(size=size, **options)).put(store)
    return stages.fuse(stages.clean(exported, store).artifact, store).artifact


def situation(
    artifact: Artifact, images: Sequence[Mapping[str, Any]] = (), model: Path | None = None
) -> Situation:
    """What a lever is given in a run that keeps its artifacts beside `artifact`."""
    return Situation(artifact, images, Store(artifact.path.parent), model, SourceOptions())


def made(variants: Sequence[Variant], stage: str) -> Built:
    """Make the variant of this name."""
    (variant,) = [one for one in variants if one.stage == stage]
    return variant.make()


def outputs(artifact: Artifact, feeds: Mapping[str, Any]) -> Arrays:
    """Answers by role, `logits` and `boxes`, the runtime's optimiser off."""
    model = load_onnx(artifact.path)
    found = dict(zip((value.name for value in model.graph.output), run(model, dict(feeds)), strict=True))
    return {role: found[name] for role, name in artifact.spec.outputs.items()}


def stored(artifact: Artifact, model: onnx.ModelProto, spec: ModelSpec | None = None) -> Artifact:
    """Another graph in the place of an artifact's, beside it."""
    path = artifact.path.with_name(f"changed-{len(list(artifact.path.parent.iterdir()))}.onnx")
    onnx.save(model, path)
    return replace(artifact, path=path, spec=spec or artifact.spec)


def copied(artifact: Artifact) -> onnx.ModelProto:
    """The graph of an artifact, to be changed."""
    return copy.deepcopy(load_onnx(artifact.path))
