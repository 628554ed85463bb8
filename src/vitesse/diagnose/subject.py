"""What is examined: the graphs, how each is fed, and what each answers to the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from vitesse.backends.protocol import Array, Tensors
from vitesse.data.dataset import open_dataset
from vitesse.data.images import Pixels, decode_image
from vitesse.data.preprocess import feeds
from vitesse.errors import SpecError
from vitesse.metadata import read_spec
from vitesse.precision.emulation import computes_in_half, emulated
from vitesse.profile.calls import random_images
from vitesse.sources.signature import graph_inputs
from vitesse.sources.spec_file import find_spec
from vitesse.spec import ModelSpec
from vitesse.verify.taps import Taps


@dataclass(frozen=True)
class Side:
    """One of the graphs.

    model: as the file has it; runnable: the same for ONNX Runtime on CPU, half precision emulated.
    spec: how it is fed and read; None where nobody says.
    """

    model: onnx.ModelProto
    runnable: onnx.ModelProto
    spec: ModelSpec | None

    def outputs_of(self, given: Tensors, model: onnx.ModelProto | None = None) -> dict[str, Array]:
        """Run the graph, or a changed `model` in its place; raises BackendError where it does not run."""
        model = model or self.runnable
        names = [entry.name for entry in model.graph.output]
        return dict(Taps(model, names, optimised=False).run(given))


@dataclass(frozen=True)
class Pictures:
    """The images: pixels and names; `random` where none were given."""

    pixels: Sequence[Pixels]
    names: Sequence[str]
    random: bool


def side_of(model: onnx.ModelProto, spec: ModelSpec | None) -> Side:
    """Prepare a graph for running."""
    return Side(model, runnable(model), spec)


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with half precision emulated where it computes in it, else the graph itself."""
    return emulated(model) if computes_in_half(model) else model


def spec_of(
    model: onnx.ModelProto, given: ModelSpec | None, preset: str | None, spec_file: Path | None
) -> ModelSpec | None:
    """Return how a graph is fed: as given, by file or preset, or as its metadata says; None where nothing does.

    Raises:
        UsageError, SpecError: as `find_spec`, but for a graph that nothing is said about.
    """
    if given is not None:
        return given
    if preset is None and spec_file is None and read_spec(model) is None:
        return None
    return find_spec(runnable(model), preset=preset, spec_file=spec_file)


def fitted(
    spec: ModelSpec | None, side: onnx.ModelProto, original: onnx.ModelProto | None
) -> ModelSpec | None:
    """Return a spec with the names of a graph that calls its input or outputs otherwise than the original."""
    if spec is None:
        return None
    inputs = [entry.name for entry in graph_inputs(side)]
    outputs = [entry.name for entry in side.graph.output]
    if spec.image_input not in inputs:
        four = [entry.name for entry in graph_inputs(side) if len(entry.shape) == 4]
        spec = replace(spec, image_input=four[0]) if four else spec
    there = [] if original is None else [entry.name for entry in original.graph.output]
    if not set(spec.outputs.values()) & set(outputs) and len(there) == len(outputs):
        here = dict(zip(there, outputs, strict=True))
        spec = replace(spec, outputs={role: here.get(name, name) for role, name in spec.outputs.items()})
    return spec


def pictures_of(data: Path | None, spec: ModelSpec | None, count: int) -> Pictures:
    """Read a few images of a folder, or make random ones of the size the spec names; none without a spec.

    Raises:
        DataError: an image cannot be read.
        SpecError: images are given, and nothing says how the model takes them.
    """
    if spec is None:
        if data is not None:
            raise SpecError(
                "nothing says how these images become the model's input",
                expected="a spec in the model's metadata, or one that is given",
                fix="give --preset NAME or --spec spec.toml",
            )
        return Pictures((), (), True)
    if data is None:
        made = random_images(spec, count)
        return Pictures(made, [f"random image {at + 1}" for at in range(count)], True)
    paths = [sample.path for sample in open_dataset(data, holdout=0.0).val.spread(count).samples]
    return Pictures([decode_image(path) for path in paths], [path.name for path in paths], False)


def fed(images: Sequence[Pixels], side: Side, count: int) -> list[dict[str, Array]]:
    """Return what the graph takes, one call per image; `count` calls of random numbers where nothing is known.

    Raises:
        SpecError: nothing is known, and the graph leaves more open than the batch.
    """
    if side.spec is not None:
        return [dict(feeds([one], side.spec)) for one in images]
    rng = np.random.default_rng(0)
    return [_random_call(side.runnable, rng) for _ in range(count)]


def _random_call(model: onnx.ModelProto, rng: np.random.Generator) -> dict[str, Array]:
    made: dict[str, Array] = {}
    for entry in graph_inputs(model):
        shape = [side if isinstance(side, int) else 1 for side in entry.shape]
        if sum(isinstance(side, str) for side in entry.shape) > 1:
            raise SpecError(
                f"the input `{entry.name}` has shape {list(entry.shape)}, and nothing says how large images are",
                expected="a spec in the model's metadata, or one that is given",
                fix="give --preset NAME or --spec spec.toml",
            )
        floats = entry.dtype.startswith("float")
        made[entry.name] = (
            rng.standard_normal(shape).astype(entry.dtype) if floats else np.ones(shape, entry.dtype)
        )
    return made


def batched(calls: Sequence[Tensors]) -> dict[str, Array]:
    """Return one call of several images."""
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def same_names(outputs: Mapping[str, Array], names: Mapping[str, str]) -> dict[str, Array]:
    """Return outputs under the original's names; what it does not have keeps its own."""
    back = {here: there for there, here in names.items()}
    return {back.get(name, name): value for name, value in outputs.items()}
