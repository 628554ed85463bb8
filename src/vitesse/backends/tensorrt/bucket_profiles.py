"""The optimisation profiles of a model whose images lie in buckets: one a bucket, or one that covers all."""

from __future__ import annotations

from collections.abc import Sequence

from vitesse.backends.protocol import TensorInfo
from vitesse.backends.tensorrt.options import Profile, ShapeRange
from vitesse.data.scaling import Size
from vitesse.errors import SpecError, UsageError
from vitesse.spec import ModelSpec, Resize

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
