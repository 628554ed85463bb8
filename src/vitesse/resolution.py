"""Images of every size through one model, laid into buckets: rows for what that costs and gains."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built
from vitesse.compress.size import smaller_sizes, spec_at, takes_any_size, unit_of
from vitesse.course import Course
from vitesse.data.buckets import choose_buckets, fit, with_buckets
from vitesse.data.scaling import Size
from vitesse.data.split import Sample, Split
from vitesse.ledger import Row, Verdict
from vitesse.metadata import serialise
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import ModelSpec, Resize
from vitesse.verify.gate import StepKind


def resolution_rows(course: Course, graph: Artifact, count: int) -> Generator[Row, None, None]:
    """Measure a graph of open height and width with `count` buckets at the spec's size, and scaled to 3/4 and to half.

    Each is a row `buckets:COUNT@HEIGHTxWIDTH`, judged as a lever is: accuracy on all validation images, each in its
    bucket, and speed beside the original. Buckets are chosen for the sizes of the validation and calibration images;
    labels play no part. The notes name the buckets, the share of padding and what is scaled down.

    Raises:
        UsageError: count below 1. DataError: an image that cannot be read.
    """
    spec = graph.spec
    model = load_onnx(graph.path).graph
    if spec.preprocessing.resize in (Resize.CROP, Resize.SQUASH):
        yield course.left_out(
            f"buckets:{count}", Verdict.REJECTED, "nothing to move: centre crops have one size"
        )
        return
    if not takes_any_size(model, spec):
        height, width = spec.preprocessing.size
        reason = (
            f"nothing to move: the graph takes images of {height}×{width} only; "
            "export with --dynamic batch,height,width"
        )
        yield course.left_out(f"buckets:{count}", Verdict.REJECTED, reason)
        return
    sizes = image_sizes(course.dataset.val, course.dataset.calib)
    unit, own = unit_of(model, spec), spec.preprocessing.size
    for size in (own, *smaller_sizes(own, unit)[1::2]):
        at_size = spec if size == own else spec_at(spec, size)
        buckets = choose_buckets(sizes, at_size.preprocessing, count, multiple=unit)
        stage = f"buckets:{count}@{size[0]}x{size[1]}"
        notes = describe_buckets(sizes, at_size, buckets)
        make = partial(bucketed, graph, course.folder.store, with_buckets(at_size, buckets), stage, notes)
        yield course.step(stage, StepKind.LEVER, graph, make)


def bucketed(
    graph: Artifact, store: Store, spec: ModelSpec, stage: str, notes: tuple[str, ...] = ()
) -> Built:
    """Return the same graph under a spec with buckets: no node changes."""
    content = serialise(load_onnx(graph.path), spec)
    made = store.put(content, spec, Provenance(stage, graph.sha256), suffix=".onnx")
    return Built(made, notes=("the graph takes images of any size: only the spec differs", *notes))


def image_sizes(*splits: Split) -> tuple[Size, ...]:
    """Return (height, width) of every image, from the labels where they tell it; raises DataError for a damaged one."""
    return tuple(sample.size or _decoded_size(sample) for split in splits for sample in split.samples)


def _decoded_size(sample: Sample) -> Size:
    height, width = sample.read().shape[:2]
    return height, width


def describe_buckets(sizes: Sequence[Size], spec: ModelSpec, buckets: Sequence[Size]) -> tuple[str, ...]:
    """Say in words which buckets there are, how the images of `sizes` lie in them, and what they lose."""
    found = fit(sizes, spec.preprocessing, buckets)
    said = ", ".join(
        f"{height}×{width} ({images})" for (height, width), images in zip(buckets, found.images, strict=True)
    )
    masked = "masked by the graph" if spec.valid_size_input else "not masked: the model takes it for image"
    notes = [
        f"buckets, height×width (images in them): {said}",
        f"{100 * found.padding:.1f} % of the tensors' pixels are padding, {masked}",
    ]
    if found.shrunk:
        notes.append(
            f"{found.shrunk} images are scaled down to fit, to {100 * found.scale:.0f} % a side at worst"
        )
    return tuple(notes)
