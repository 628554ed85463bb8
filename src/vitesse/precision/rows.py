"""Rows of the ledger for FP16, BF16, INT8 and FP8: made, assessed, and where the whole costs too much, searched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from vitesse.artifact import Artifact
from vitesse.backends import QUANTIZERS, quantizer
from vitesse.backends.protocol import Built
from vitesse.course import Course
from vitesse.errors import MissingExtra, UsageError
from vitesse.ledger import Row, Verdict
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.half import to_half
from vitesse.precision.quantize import quantize
from vitesse.verify.gate import StepKind

HALF = ("fp16", "bf16")
EIGHT_BITS = ("int8", "fp8")
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
            feeds = (
                course.calibration(number, graph, options.images) if course.dataset.calib.samples else None
            )
            return to_half(graph, course.folder.store, feeds, options, number=number)

        yield course.step(number, StepKind.PRECISION, graph, make, reference=reference)


def eight_bit_rows(course: Course, graph: Artifact, reference: Artifact) -> Iterator[Row]:
    """Lower every layer that can be, in one file that every runtime takes."""
    for number in (number for number in EIGHT_BITS if number in course.recipe.precisions):
        if not course.dataset.calib.samples:
            yield course.left_out(number, Verdict.UNKNOWN, NO_IMAGE)
            continue
        make = partial(_everything, course, graph, number)
        yield course.step(number, StepKind.PRECISION, graph, make, reference=reference)


def _everything(course: Course, graph: Artifact, number: str) -> Built:
    options = course.recipe.int8
    if number == "fp8":
        # Its steps shrink towards zero, so that clipping the largest values costs more than it gains.
        options = replace(options, method="minmax")
    calibrated = calibrate_graph(
        graph,
        course.folder.store,
        course.calibration(number, graph),
        options,
        symmetric=number == "fp8" or options.activations != "uint8",
        cache=course.folder.calibration,
        data_key=course.data_key,
    )
    names = [layer.name for layer in calibrated.layers]
    made = quantize(
        calibrated.artifact,
        course.folder.store,
        names,
        calibrated.ranges,
        options,
        number=number,
        stage=number,
    )
    return replace(made, notes=(*calibrated.notes, *made.notes))


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
