"""A stage: FP32 → FP16 or BF16, with FP32 islands where the values on real images need them, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built, Tensors
from vitesse.data.preprocess import feeds as prepared
from vitesse.errors import UsageError
from vitesse.metadata import serialise
from vitesse.precision.activations import observe
from vitesse.precision.half_casts import HALF_TYPES, HalfGraph
from vitesse.precision.half_search import LIMITS, Found, Wiring, search
from vitesse.precision.half_trials import Trials
from vitesse.precision.islands import reasons
from vitesse.profile.calls import random_images
from vitesse.profile.modules import modules_of
from vitesse.recipe import HalfOptions

# Images on which sets of islands are tried, and sets tried at most.
TRIAL_IMAGES, MOST_TRIALS = 4, 40
_RANDOM_IMAGES = 4


def to_half(
    artifact: Artifact,
    store: Store,
    feeds: Iterable[Tensors] | None,
    options: HalfOptions,
    *,
    number: str = "fp16",
    normalise_in_fp32: bool = False,
) -> Built:
    """Write a float32 model in half precision.

    Args:
        artifact: a cleaned float32 graph.
        feeds: calibration images, batch 1; the first `options.images` are looked at, the first 4 kept for trials.
        number: `fp16` or `bf16`.
        normalise_in_fp32: also keep LayerNormalization, softmax and Attention in FP32, for targets that would add in
            half precision inside them.

    Returns:
        The model; `changes` counts nodes in half precision, in islands, and casts; `notes` tells every island that
        remains and why, and the error measured by emulation.

    Raises:
        UsageError: no images, and random ones are not allowed; or `number` is neither.
        DataError: `feeds` is empty.
        ModelError: the graph is not valid, or has local functions.
    """
    found = find_islands(artifact, feeds, options, number=number, normalise_in_fp32=normalise_in_fp32)
    return write_half(artifact, store, found, options)


@dataclass(frozen=True, eq=False)
class Islands:
    """Which nodes of a graph stay in FP32.

    Args:
        graph: the float32 graph, whose nodes are named.
        found: node name → why, and what was measured with these islands.
        notes: about the images that decided.
    """

    graph: HalfGraph
    found: Found
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the nodes in FP32, in the graph's order; other graphs made from the same one name them so, too."""
        return tuple(self.found.islands)

    def told(self) -> tuple[str, ...]:
        """Which images decided, where they were not real, and every island in words."""
        return (*self.notes, *_told(self.graph, self.found))


def find_islands(
    artifact: Artifact,
    feeds: Iterable[Tensors] | None,
    options: HalfOptions,
    *,
    number: str = "fp16",
    normalise_in_fp32: bool = False,
) -> Islands:
    """Find the nodes that have to stay in FP32; arguments and errors are those of `to_half`."""
    if number not in HALF_TYPES:
        raise UsageError(f"half precision {number!r}", expected=f"one of {', '.join(HALF_TYPES)}")
    images, notes = _images(artifact, feeds, options, number)
    graph = HalfGraph(onnx.load(artifact.path), number)
    samples, stream = _kept(images, options.images)
    activations = observe(graph.float_model, stream)
    suspected = reasons(
        graph.float_model, activations, options, number=number, normalise_in_fp32=normalise_in_fp32
    )
    # Where nothing comes near the limit, a nearer one changes nothing, and trials are faster without.
    headroom = 2.0 ** int(np.log2(options.headroom)) if suspected else 1.0
    trials = Trials(graph, samples, headroom=headroom, most=MOST_TRIALS)
    return Islands(graph, search(graph, trials, suspected, activations), notes)


def write_half(artifact: Artifact, store: Store, islands: Islands, options: HalfOptions) -> Built:
    """Write the graph with islands that were found for it; what is returned is described at `to_half`."""
    graph, found = islands.graph, islands.found
    model = graph.written(found.islands, keep_io=options.keep_io)
    provenance = Provenance(graph.number, artifact.sha256, {"headroom": f"{options.headroom:g}"})
    made = store.put(serialise(model, artifact.spec), artifact.spec, provenance, suffix=".onnx")
    return Built(made, _changes(graph, found, model), (*islands.told(), *_measured(graph, found)))


def _images(
    artifact: Artifact, feeds: Iterable[Tensors] | None, options: HalfOptions, number: str
) -> tuple[Iterable[Tensors], tuple[str, ...]]:
    if feeds is not None:
        return feeds, ()
    if not options.allow_random:
        raise UsageError(
            f"no images to look at the model's activations before {number.upper()}",
            expected="images as the model will see them: which values overflow depends on them",
            fix="name a folder with images: --data FOLDER; or --allow-random, and the result stays a guess",
        )
    note = (
        f"the activations are those of {_RANDOM_IMAGES} random images: what real ones do to them is unknown"
    )
    pictures = random_images(artifact.spec, _RANDOM_IMAGES)
    return (prepared([picture], artifact.spec) for picture in pictures), (note,)


def _kept(images: Iterable[Tensors], most: int) -> tuple[list[Tensors], Iterator[Tensors]]:
    """The first few images, and a stream of all that are looked at."""
    stream = iter(images)
    samples = list(islice(stream, min(TRIAL_IMAGES, most)))
    return samples, _chained(samples, islice(stream, most - len(samples)))


def _chained(first: Sequence[Tensors], rest: Iterable[Tensors]) -> Iterator[Tensors]:
    yield from first
    yield from rest


def _changes(graph: HalfGraph, found: Found, model: onnx.ModelProto) -> Mapping[str, int]:
    def casts(one: onnx.ModelProto) -> int:
        return sum(node.op_type == "Cast" for node in one.graph.node)

    name = graph.number.upper()
    return {
        f"nodes in {name}": len(graph.convertible) - len(found.islands),
        "nodes in FP32 islands": len(found.islands),
        "suspected nodes that need no FP32": found.dropped,
        "Cast inserted": casts(model) - casts(graph.float_model),
    }


def _told(graph: HalfGraph, found: Found) -> Iterator[str]:
    wiring = Wiring(graph.float_model)
    modules = modules_of(graph.float_model)
    kinds = {node.name: node.op_type for node in graph.float_model.graph.node}
    for group in wiring.groups(found.islands):
        place = modules.place_of(group[0])
        where = f" in {'.'.join(place.path)}" if place is not None and place.path else ""
        what = (
            kinds[group[0]]
            if len(group) == 1
            else f"{len(group)} nodes, {kinds[group[0]]} … {kinds[group[-1]]}"
        )
        yield f"FP32 island{where} ({what}): {found.islands[group[0]]}"


def _measured(graph: HalfGraph, found: Found) -> Iterator[str]:
    """What was tried in vain, and what it all costs."""
    yield from found.notes
    worst = max(found.loss.by_tensor, key=found.loss.by_tensor.__getitem__, default="")
    if worst:
        limit = LIMITS[graph.number]
        verdict = "" if found.loss.worst <= limit else f", beyond the {limit:.0%} that is aimed at"
        yield f"largest relative error, emulated: {found.loss.worst:.2%} in `{worst}`{verdict}"
