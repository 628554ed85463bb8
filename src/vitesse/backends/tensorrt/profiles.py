"""Optimisation profiles: read from text, made from a graph's own inputs, and chosen for the shapes of a call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import log

from vitesse.backends.feeds import described
from vitesse.backends.protocol import TensorInfo
from vitesse.backends.tensorrt.options import Profile, Shape, ShapeRange
from vitesse.errors import DataError, UsageError

_FORM = "NAME=MIN..OPT..MAX, such as images=1x3x480x640..8x3x800x1333..16x3x1333x1333"
_SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*)*")
# Sizes in a line to copy, for free dimensions that are not the batch.
_EXAMPLE = (320, 640, 1280)


def parse_shapes(text: str) -> tuple[Profile, ...]:
    """Read `images=1x3x480x640..8x3x800x1333..16x3x1333x1333`.

    Three parts are min..opt..max; two are min..max, with the largest the usual one; one is a fixed shape. Several
    inputs are separated by a comma, several profiles by a semicolon.

    Raises:
        UsageError: says which part cannot be read.
    """
    profiles = tuple(_profile(part) for part in text.split(";"))
    first = {name: len(span.min) for name, span in profiles[0].inputs.items()}
    for number, profile in enumerate(profiles[1:], 2):
        ranks = {name: len(span.min) for name, span in profile.inputs.items()}
        if ranks != first:
            raise UsageError(
                f"profile {number} gives shapes for {_ranks(ranks)}, profile 1 for {_ranks(first)}",
                expected="the same inputs, with as many dimensions, in every profile",
            )
    return profiles


def default_profiles(model_inputs: Sequence[TensorInfo], batch: tuple[int, int, int]) -> tuple[Profile, ...]:
    """Return the profile of a graph in which only the batch is free; none where every shape is fixed.

    Args:
        model_inputs: with names (str) in place of free dimensions.
        batch: min, opt, max.

    Raises:
        UsageError: the batch is out of order, or another dimension is free; the message has a line to type.
    """
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UsageError(f"a batch of {batch}", expected="1 ≤ min ≤ opt ≤ max")
    free = [info for info in model_inputs if is_dynamic(info)]
    if not free:
        return ()
    for info in model_inputs:
        if any(isinstance(size, str) for size in info.shape[1:]):
            _refuse(f"more than the batch is free in the input {described(info)}", free, batch)
        if info not in free and info.shape:
            _refuse(f"the input {described(info)} has a fixed batch, and others do not", free, batch)
    return (Profile({info.name: _range(info, batch) for info in free}),)


def is_dynamic(info: TensorInfo) -> bool:
    """Whether a dimension of the input is free."""
    return any(isinstance(size, str) for size in info.shape)


def check_profiles(inputs: Sequence[TensorInfo], profiles: Sequence[Profile]) -> None:
    """Hold profiles against the inputs of a network, before TensorRT does it in other words.

    Raises:
        UsageError: no profile for a free dimension, an unknown input, another rank, or a size that the graph fixes.
    """
    dynamic = [info for info in inputs if is_dynamic(info)]
    if dynamic and not profiles:
        _refuse(
            f"no optimisation profile for the free dimensions of {_listed(dynamic)}",
            dynamic,
            (1, 1, 8),
            expected="the smallest, usual and largest shape of each of these inputs",
        )
    known = {info.name: info for info in inputs}
    for number, profile in enumerate(profiles, 1):
        where = f"profile {number}"
        missing = [info for info in dynamic if info.name not in profile.inputs]
        if missing:
            _refuse(f"{where} has no shapes for the input {_listed(missing)}", dynamic, (1, 1, 8))
        for name, span in profile.inputs.items():
            if name not in known:
                raise UsageError(
                    f"{where} gives shapes for {name!r}, which is no input of the model",
                    expected=f"one of: {', '.join(known)}",
                )
            _check_span(where, known[name], span)


def profile_for(shapes: Mapping[str, Shape], profiles: Sequence[Profile]) -> int:
    """Return the number, from 0, of the profile to run these shapes with.

    Among the profiles that hold them it is the one whose usual shape is nearest: kernels were chosen for that shape.
    Near is the sum of |log(size / usual size)|, so that twice and half as large are equally far. Inputs that a profile
    does not name have fixed shapes and do not count.

    Raises:
        DataError: none holds them; the message lists the profiles.
    """
    holding = [number for number, profile in enumerate(profiles) if _holds(profile, shapes)]
    if holding:
        return min(holding, key=lambda number: _distance(profiles[number], shapes))
    if not profiles:
        return 0
    came = ", ".join(f"{name}={_text(shape)}" for name, shape in shapes.items())
    listed = "; ".join(f"{number}: {profile_text(profile)}" for number, profile in enumerate(profiles, 1))
    raise DataError(
        f"no optimisation profile of the engine holds {came}",
        expected=f"shapes within one of these (min..opt..max): {listed}",
        fix="resize or split the batch, or build the engine again with --shapes that hold them",
    )


def profile_text(profile: Profile) -> str:
    """Write a profile as `parse_shapes` reads it."""
    return ",".join(
        f"{name}={'..'.join(map(_text, (span.min, span.opt, span.max)))}"
        for name, span in profile.inputs.items()
    )


def _profile(text: str) -> Profile:
    inputs: dict[str, ShapeRange] = {}
    for part in text.split(","):
        name, equals, span = part.strip().rpartition("=")
        if not name or not equals:
            raise UsageError(f"the shapes {part.strip()!r} of {text!r} cannot be read", expected=_FORM)
        if name in inputs:
            raise UsageError(
                f"{name!r} stands twice in the profile {text.strip()!r}",
                expected="each input once; a semicolon between profiles",
            )
        inputs[name] = _span(name, span)
    return Profile(inputs)


def _span(name: str, text: str) -> ShapeRange:
    parts = text.split("..")
    if len(parts) > 3 or not all(map(_SHAPE.fullmatch, parts)):
        raise UsageError(f"the shapes {text!r} of {name!r} cannot be read", expected=_FORM)
    shapes = [tuple(map(int, part.split("x"))) for part in parts]
    span = ShapeRange(shapes[0], shapes[len(shapes) // 2], shapes[-1])
    if len({len(shape) for shape in shapes}) > 1:
        raise UsageError(f"the shapes {text!r} of {name!r} have different numbers of dimensions")
    if any(not low <= usual <= high for low, usual, high in zip(span.min, span.opt, span.max, strict=True)):
        raise UsageError(f"the shapes {text!r} of {name!r} are out of order", expected="min ≤ opt ≤ max")
    return span


def _check_span(where: str, info: TensorInfo, span: ShapeRange) -> None:
    if len(span.min) != len(info.shape):
        raise UsageError(
            f"{where} gives {len(span.min)} dimensions for {info.name!r}", expected=described(info)
        )
    for size, low, high in zip(info.shape, span.min, span.max, strict=True):
        if isinstance(size, int) and not low == size == high:
            raise UsageError(
                f"{where} gives {low}..{high} for a dimension of {info.name!r} that the model fixes to {size}",
                expected=described(info),
                fix="use the model's own size, or export it with that dimension free",
            )


def _refuse(
    what: str, free: Sequence[TensorInfo], batch: tuple[int, int, int], *, expected: str = ""
) -> None:
    line = profile_text(Profile({info.name: _range(info, batch) for info in free}))
    raise UsageError(
        what, expected=expected or "shapes for them", fix=f'--shapes "{line}", with sizes of your own'
    )


def _range(info: TensorInfo, batch: tuple[int, int, int]) -> ShapeRange:
    """Fill the free dimensions: the first with the batch, others with examples."""
    low, usual, high = (
        tuple(
            size if isinstance(size, int) else (batch if axis == 0 else _EXAMPLE)[part]
            for axis, size in enumerate(info.shape)
        )
        for part in range(3)
    )
    return ShapeRange(low, usual, high)


def _holds(profile: Profile, shapes: Mapping[str, Shape]) -> bool:
    return all(
        name in shapes
        and len(shapes[name]) == len(span.min)
        and all(low <= size <= high for low, size, high in zip(span.min, shapes[name], span.max, strict=True))
        for name, span in profile.inputs.items()
    )


def _distance(profile: Profile, shapes: Mapping[str, Shape]) -> float:
    return sum(
        abs(log(size / usual))
        for name, span in profile.inputs.items()
        for size, usual in zip(shapes[name], span.opt, strict=True)
    )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _listed(inputs: Sequence[TensorInfo]) -> str:
    return "; ".join(map(described, inputs))


def _ranks(ranks: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({rank} dimensions)" for name, rank in ranks.items())
