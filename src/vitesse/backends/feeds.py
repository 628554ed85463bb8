"""Are these the tensors the graph takes? One check, with one set of messages, for every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from vitesse.backends.protocol import TensorInfo
from vitesse.errors import DataError


class Described(Protocol):
    """What is compared: numpy arrays have it, arrays on a GPU too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        ...


def check_feeds(feeds: Mapping[str, Described], inputs: Sequence[TensorInfo]) -> None:
    """Compare names, dtypes, ranks and fixed dimensions; symbolic dimensions take any size.

    Raises:
        DataError: says what came and what the graph takes.
    """
    if len(feeds) != len(inputs) or any(info.name not in feeds for info in inputs):
        raise DataError(
            f"the feeds are named {sorted(feeds)}",
            expected=f"exactly {sorted(info.name for info in inputs)}: {'; '.join(map(described, inputs))}",
            cause=_name_cause(feeds, inputs),
        )
    for info in inputs:
        array = feeds[info.name]
        if dtype_name(array.dtype) != info.dtype:
            raise DataError(
                f"the feed {info.name!r} has dtype {array.dtype.name}",
                expected=described(info),
                fix=f"array.astype(numpy.{info.dtype})",
            )
        if not _fits(array, info):
            raise DataError(
                f"the feed {info.name!r} has shape {tuple(array.shape)}",
                expected=described(info),
                cause="another input size, a missing batch dimension, or another layout (NCHW, NHWC)",
            )


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return `dtype.name`, which numpy puts together anew each time it is asked."""
    return dtype.name


def described(info: TensorInfo) -> str:
    """Return `images float32 [N, 3, 320, 320]`."""
    return f"{info.name} {info.dtype} [{', '.join(map(str, info.shape))}]"


def _fits(array: Described, info: TensorInfo) -> bool:
    if len(array.shape) != len(info.shape):
        return False
    return all(
        isinstance(want, str) or want == came for came, want in zip(array.shape, info.shape, strict=True)
    )


def _name_cause(feeds: Mapping[str, Described], inputs: Sequence[TensorInfo]) -> str:
    missing = sorted({info.name for info in inputs} - set(feeds))
    unknown = sorted(set(feeds) - {info.name for info in inputs})
    said = [f"missing: {', '.join(missing)}"] * bool(missing) + [
        f"not an input: {', '.join(unknown)}"
    ] * bool(unknown)
    return "; ".join(said)
