"""Lever "size": smaller images, so that everything in the model has fewer positions to compute.

A checkpoint is exported again at the smaller size, its position embedding resized, and cleaned and fused like the
original. A graph whose height and width are open keeps every node: only the spec asks for smaller images. Boxes come
out in pixels of the original image either way, for the spec that travels with the artifact says how to map them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import onnx

from vitesse import stages
from vitesse.artifact import Artifact, Provenance
from vitesse.backends.protocol import Built
from vitesse.compress.lever import NotApplicable, Situation, Variant
from vitesse.errors import ModelError, SpecError, UsageError
from vitesse.export.exporting import export_source
from vitesse.metadata import serialise
from vitesse.recipe import SourceOptions
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.opening import is_onnx, open_source
from vitesse.sources.source import Given
from vitesse.spec import ModelSpec, Resize

Size = tuple[int, int]
SCALES = (Fraction(7, 8), Fraction(3, 4), Fraction(5, 8), Fraction(1, 2))
# Pixels a cell of the coarsest feature map, in ResNets and in most detectors.
_STRIDE = 32
# Sides are kept at multiples of a larger unit where that still leaves so many steps below the original size.
_STEPS = 8


def variants(situation: Situation) -> Sequence[Variant]:
    """Return `size:224x224`, … (height × width in pixels): 7/8, 3/4, 5/8 and 1/2 of each side, as far as they differ.

    Raises:
        NotApplicable: the graph takes one size only and came as ONNX, or it is too small for a smaller one.
    """
    artifact = situation.artifact
    graph = load_onnx(artifact.path).graph
    open_axes = takes_any_size(graph, artifact.spec)
    if not open_axes and (situation.model is None or is_onnx(situation.model)):
        height, width = artifact.spec.preprocessing.size
        raise NotApplicable(
            f"the graph takes images of {height}×{width} only, and there is no checkpoint to export again",
            expected="a model that can be exported at another size",
            fix="optimize the checkpoint itself, or export with --dynamic batch,height,width",
        )
    found = smaller_sizes(artifact.spec.preprocessing.size, unit_of(graph, artifact.spec))
    if not found:
        height, width = artifact.spec.preprocessing.size
        raise NotApplicable(f"images of {height}×{width} have too few patches for a smaller size")
    make = _respecified if open_axes else _exported
    return [Variant(_stage(size), partial(make, situation, size)) for size in found]


def takes_any_size(graph: onnx.GraphProto, spec: ModelSpec) -> bool:
    """Whether height and width of the image input are open."""
    (shape,) = [
        value.type.tensor_type.shape.dim for value in graph.input if value.name == spec.image_input
    ] or [[]]
    sides = shape[2:4] if spec.preprocessing.layout == "NCHW" else shape[1:3]
    return len(sides) == 2 and not any(side.HasField("dim_value") for side in sides)


def unit_of(graph: onnx.GraphProto, spec: ModelSpec) -> int:
    """Pixels that the sides of an image should be multiples of: the patch, or the stride of a convolutional backbone.

    A multiple of that which divides both sides is taken where it is small enough: windowed attention needs it.
    """
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    attributes = {} if first is None else {entry.name: list(entry.ints) for entry in first.attribute}
    strides = attributes.get("strides", [1])
    patch = strides == attributes.get("kernel_shape") and strides[0] > 1
    base = strides[0] if patch else _STRIDE
    sides = spec.preprocessing.size
    larger = range(base, min(sides) // _STEPS + 1, base)
    return max((unit for unit in larger if not any(side % unit for side in sides)), default=base)


def smaller_sizes(size: Size, unit: int) -> list[Size]:
    """`size` times each of SCALES, each side rounded to a multiple of `unit` (halves up); distinct, largest first."""
    found: list[Size] = []
    for scale in SCALES:
        height, width = (max(unit, int(side * scale / unit + Fraction(1, 2)) * unit) for side in size)
        smaller = height <= size[0] and width <= size[1] and (height, width) != size
        if smaller and (height, width) not in found:
            found.append((height, width))
    return found


def spec_at(spec: ModelSpec, size: Size) -> ModelSpec:
    """Return the spec for images of another size; images that had to have the one size are stretched to the new one."""
    rules = spec.preprocessing
    resize = Resize.STRETCH if rules.resize is Resize.NONE else rules.resize
    return replace(spec, preprocessing=replace(rules, size=size, resize=resize))


def _stage(size: Size) -> str:
    return f"size:{size[0]}x{size[1]}"


def _respecified(situation: Situation, size: Size) -> Built:
    """The same graph under a spec of another size."""
    artifact = situation.artifact
    spec = spec_at(artifact.spec, size)
    content = serialise(load_onnx(artifact.path), spec)
    provenance = Provenance(_stage(size), artifact.sha256)
    made = situation.store.put(content, spec, provenance, suffix=".onnx")
    return Built(
        made, notes=("the graph takes images of any size: only the spec differs", *_stretched(artifact))
    )


def _exported(situation: Situation, size: Size) -> Built:
    """The model exported again at another size, cleaned and fused."""
    model, source = situation.model, situation.source or SourceOptions()
    assert model is not None
    artifact = situation.artifact
    weights = None if source.weights is None else Path(source.weights)
    options = stages.export_options(replace(source, size=size))
    try:
        opened = open_source(model, Given(spec_at(artifact.spec, size), source.settings), weights=weights)
        exported = export_source(opened, options).put(situation.store)
    except (UsageError, SpecError) as error:  # what the user asked for is right: this size is not
        raise ModelError(
            f"{model} cannot be exported for images of {size[0]}×{size[1]}: {error.what}",
            expected=error.expected,
        ) from error
    cleaned = stages.clean(exported, situation.store)
    fused = stages.fuse(cleaned.artifact, situation.store)
    graph = fused.artifact
    if situation.lower:
        graph = stages.lower(graph, situation.lower, situation.store).artifact
    content = graph.path.read_bytes()
    provenance = Provenance(_stage(size), artifact.sha256)
    made = situation.store.put(content, graph.spec, provenance, suffix=".onnx")
    notes = (f"exported again for images of {size[0]}×{size[1]}, cleaned and fused", *_stretched(artifact))
    return Built(made, {**cleaned.changes, **fused.changes}, notes)


def _stretched(artifact: Artifact) -> tuple[str, ...]:
    if artifact.spec.preprocessing.resize is not Resize.NONE:
        return ()
    return ("images are stretched to the new size; the original took them as they are",)
