"""A graph with the ranges of its layers: smoothed first where that was asked for, for smoothing changes the ranges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Tensors
from vitesse.metadata import serialise
from vitesse.precision.calibration import calibrate
from vitesse.precision.layers import Layer, layers_of
from vitesse.precision.ranges import Ranges
from vitesse.recipe import Int8Options
from vitesse.sources.onnx_file import load_onnx


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A graph, the layers in it that may be quantised, and the ranges of what they read and make."""

    artifact: Artifact
    layers: tuple[Layer, ...]
    ranges: Ranges
    notes: tuple[str, ...] = ()


def calibrate_graph(
    artifact: Artifact,
    store: Store,
    feeds: Iterable[Tensors],
    options: Int8Options,
    *,
    symmetric: bool,
    cache: Path | None = None,
    data_key: str = "",
) -> Calibrated:
    """Calibrate, and where `options.smooth` says so, move outliers into the weights and calibrate what came out.

    Args and raises: as `calibration.calibrate`.
    """
    model = load_onnx(artifact.path)
    layers = layers_of(model, attention=options.attention)

    def ranges_of(graph: Artifact) -> Ranges:
        return calibrate(graph, feeds, layers, options, symmetric=symmetric, cache=cache, data_key=data_key)

    found = ranges_of(artifact)
    if not options.smooth:
        return Calibrated(artifact, layers, found)
    from vitesse.precision.smooth import smooth

    smoothed, done = smooth(model, found.channels, layers, options.smooth)
    provenance = Provenance("smooth", artifact.sha256, {"alpha": str(options.smooth)})
    made = store.put(serialise(smoothed, artifact.spec), artifact.spec, provenance, suffix=".onnx")
    return Calibrated(made, layers_of(smoothed, attention=options.attention), ranges_of(made), done.notes)
