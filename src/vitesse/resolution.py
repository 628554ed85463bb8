"""Images of every size through one model: the shapes that engines are built for, and rows for what buckets cost."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built, TensorInfo
from vitesse.backends.tensorrt.options import Profile, ShapeRange
from vitesse.compress.size import smaller_sizes, spec_at, takes_any_size, unit_of
from vitesse.course import Course
from vitesse.data.buckets import choose_buckets, fit, with_buckets
from vitesse.data.scaling import Size
from vitesse.data.split import Sample, Split
from vitesse.errors import SpecError, UsageError
from vitesse.ledger import Row, Verdict
from vitesse.metadata import serialise
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import ModelSpec, Resize
from vitesse.verify.gate import StepKind

Batch = tuple[int, int, int]


def profiles_for(
    spec: ModelSpec, inputs: Sequence[TensorInfo], batch: Batch, *, covering: bool = False
) -> tuple[Profile, ...]:
    """Return the optimisation profiles for the tensors that a spec makes.

    One profile a bucket, of fixed height and width, in the spec's order: the engine's kernels are chosen for exactly
    these shapes, and each is one CUDA graph. With `covering` one profile for all of them: from the smallest height and
    the smallest width to the largest of each, best at the bucket of most pixels; it has to allow the largest height
    together with the largest width, which no bucket may have.

    Args:
        spec: its buckets, or the one size that its resize rule makes.
        inputs: of the graph; those without an open dimension need no range. Empty = nothing is open: no profile.
        batch: the smallest, the most usual and the largest number of images.

    Raises:
        UsageError: batch sizes that do not ascend from 1.
        SpecError: a spec that makes tensors of any size, a graph whose fixed dimensions are other ones, or an open
            input that the spec does not feed.
    """
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UsageError(f"batch sizes {batch}", expected="1 ≤ smallest ≤ most usual ≤ largest")
    sizes = _tensor_sizes(spec)
    if covering:
        largest = max(sizes, key=lambda size: size[0] * size[1])
        heights, widths = zip(*sizes, strict=True)
        ranges = [((min(heights), min(widths)), largest, (max(heights), max(widths)))]
    else:
        ranges = [(size, size, size) for size in sizes]
    made = [_profile(spec, inputs, batch, sides) for sides in ranges]
    return tuple(profile for profile in made if profile.inputs)


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


def _tensor_sizes(spec: ModelSpec) -> tuple[Size, ...]:
    rules = spec.preprocessing
    if rules.buckets:
        return rules.buckets
    if rules.resize is Resize.SHORTEST:
        raise SpecError(
            'the spec says resize = "shortest" and names no buckets: every image makes a tensor of its own size',
            expected="buckets, which are the shapes an engine is built for",
            fix="choose them with vitesse.data.buckets.choose_buckets, or give shapes with --shapes",
        )
    return (rules.size,)


def _profile(
    spec: ModelSpec, inputs: Sequence[TensorInfo], batch: Batch, sides: tuple[Size, Size, Size]
) -> Profile:
    ranges: dict[str, ShapeRange] = {}
    for entry in inputs:
        if all(isinstance(dim, int) for dim in entry.shape) and entry.name != spec.image_input:
            continue
        wanted = [_shape(spec, entry, images, size) for images, size in zip(batch, sides, strict=True)]
        _check_fixed(entry, wanted)
        if not all(isinstance(dim, int) for dim in entry.shape):
            ranges[entry.name] = ShapeRange(*wanted)
    return Profile(ranges)


def _shape(spec: ModelSpec, entry: TensorInfo, images: int, size: Size) -> tuple[int, ...]:
    if entry.name == spec.image_input:
        return (images, 3, *size) if spec.preprocessing.layout == "NCHW" else (images, *size, 3)
    if entry.name in (spec.size_input, spec.valid_size_input):
        return (images, 2)
    raise SpecError(
        f"the input `{entry.name}` {list(entry.shape)} has open dimensions and no part in the spec",
        expected="the image input, size_input and valid_size_input only",
        fix=f"give its shapes: --shapes {entry.name}=…",
    )


def _check_fixed(entry: TensorInfo, wanted: Sequence[tuple[int, ...]]) -> None:
    for shape in wanted:
        fits = len(shape) == len(entry.shape) and all(
            isinstance(dim, str) or dim == side for dim, side in zip(entry.shape, shape, strict=True)
        )
        if not fits:
            raise SpecError(
                f"the graph's input `{entry.name}` is {list(entry.shape)}, the spec and the batch sizes ask for "
                f"{list(shape)}",
                expected="the same number wherever the graph fixes a dimension",
                cause="a graph exported for one size or one batch size",
                fix="export with --dynamic batch,height,width, or ask for what the graph has",
            )
