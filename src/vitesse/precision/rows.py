"""Rows of the ledger for FP16, BF16, INT8 and FP8: made, assessed, and where the whole costs too much, searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse.artifact import Artifact, Store
from vitesse.backends import GPUS, QUANTIZERS, quantizer
from vitesse.backends.protocol import Built
from vitesse.course import Course
from vitesse.errors import MissingExtra, UsageError
from vitesse.ledger import Row, Verdict
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.half import Islands, find_islands, write_half
from vitesse.precision.half_quantised import to_half_quantised
from vitesse.precision.quantize import quantize
from vitesse.precision.search.trials import TrialStore
from vitesse.recipe import EIGHT_BITS, HALF, Int8Options, Recipe
from vitesse.verify.gate import StepKind

NO_IMAGE = "there is no image to calibrate on: name some with --calib-data"


def half_rows(course: Course, graph: Artifact, reference: Artifact) -> Iterator[Row]:
    """Turn the graph into FP16 and BF16, with float32 islands where the images show that they are needed."""
    options = course.recipe.half
    for number in (number for number in HALF if number in course.recipe.precisions):
        if not course.dataset.calib.samples and not options.allow_random:
            yield course.left_out(
                number, Verdict.UNKNOWN, f"{NO_IMAGE}, or decide by random ones: --allow-random"
            )
            continue

        def make(number: str = number) -> Built:
            return write_half(
                graph, course.folder.store, _found_islands(course, graph, number, number), options
            )

        yield course.step(number, StepKind.PRECISION, graph, make, reference=reference)


def eight_bit_rows(course: Course, graph: Artifact, reference: Artifact) -> Iterator[Row]:
    """Lower every layer that can be, in one file that every runtime takes, and in one whose rest is FP16, for GPUs."""
    for number in EIGHT_BITS:
        steps: dict[str, Callable[[], Built]] = {}
        if number in course.recipe.precisions:
            steps[number] = partial(
                _everything, course, graph, number, course.recipe.int8, course.folder.store
            )
        if wants_half_too(course.recipe, number):
            steps[with_half(number)] = partial(_everything_else_in_half, course, graph, number)
        for stage, make in steps.items():
            if not course.dataset.calib.samples:
                yield course.left_out(stage, Verdict.UNKNOWN, NO_IMAGE)
            else:
                yield course.step(stage, StepKind.PRECISION, graph, make, reference=reference)


def with_half(number: str) -> str:
    """Return the name of the step that writes `number` with FP16 instead of float32 beside it."""
    return f"{number}+fp16"


def wants_half_too(recipe: Recipe, number: str) -> bool:
    """Whether a run makes the file in eight bits and FP16: where it is named, or where a GPU is to run both.

    A CPU computes FP16 in float32 and could only reject it as slower.
    """
    both = {number, "fp16"} <= set(recipe.precisions)
    return with_half(number) in recipe.precisions or (both and recipe.target in GPUS)


def _everything(
    course: Course, graph: Artifact, number: str, options: Int8Options, store: Store, stage: str = ""
) -> Built:
    if number == "fp8":
        # Its steps shrink towards zero, so that clipping the largest values costs more than it gains.
        options = replace(options, method="minmax")
    calibrated = calibrate_graph(
        graph,
        store,
        course.calibration(stage or number, graph),
        options,
        symmetric=number == "fp8" or options.activations != "uint8",
        cache=course.folder.calibration,
        data_key=course.data_key,
    )
    names = [layer.name for layer in calibrated.layers]
    made = quantize(
        calibrated.artifact,
        store,
        names,
        calibrated.ranges,
        options,
        number=number,
        stage=number,
    )
    return replace(made, notes=(*calibrated.notes, *made.notes))


def _everything_else_in_half(course: Course, graph: Artifact, number: str) -> Built:
    """Quantise as for a GPU, whatever CPU this is, and write the rest in FP16 with the islands of that step."""
    stage = with_half(number)
    options = replace(course.recipe.int8, activations="int8", weight_bits=course.recipe.int8.weight_bits or 8)
    islands = _known_islands(course, graph, stage)
    with TemporaryDirectory(prefix="vitesse-") as scratch:
        quantised = _everything(course, graph, number, options, Store(Path(scratch)), stage)
        return to_half_quantised(quantised, course.folder.store, islands, course.recipe.half, stage=stage)


def _found_islands(course: Course, graph: Artifact, number: str, stage: str) -> Islands:
    """Find the nodes that stay in FP32, and remember those of FP16 for the steps that follow."""
    options = course.recipe.half
    feeds = course.calibration(stage, graph, options.images) if course.dataset.calib.samples else None
    islands = find_islands(graph, feeds, options, number=number)
    if number == "fp16":
        store, key = _memory(course, graph)
        store.finish({"islands": islands.names}, *key)
    return islands


def _known_islands(course: Course, graph: Artifact, stage: str) -> Sequence[str]:
    store, key = _memory(course, graph)
    kept = store.finished(*key)
    return _found_islands(course, graph, "fp16", stage).names if kept is None else kept["islands"]


def _memory(course: Course, graph: Artifact) -> tuple[TrialStore, tuple[object, ...]]:
    key = ("islands", graph.sha256, course.data_key, asdict(course.recipe.half))
    return TrialStore(course.folder.folder / "trials"), key


def own_int8_rows(course: Course, runtime: str, graph: Artifact, reference: Artifact) -> Iterator[Row]:
    """Try the runtime's own quantiser, where it has one and that is installed."""
    try:
        own = quantizer(runtime)
    except (UsageError, MissingExtra):
        return

    stage = f"{QUANTIZERS[runtime].package}:{runtime}"

    def make() -> Built:
        return own(graph, course.folder.store, course.calibration(stage, graph))

    yield course.step(stage, StepKind.PRECISION, graph, make, reference=reference)
