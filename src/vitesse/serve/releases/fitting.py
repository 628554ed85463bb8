"""Whether a release takes a request's tensors: a network made smaller by a lever takes other sizes than the original.

Tensors of v2 are what the client says they are and cannot be made anew for another release, as an image can.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitesse.backends.feeds import dtype_name
from vitesse.backends.protocol import TensorInfo
from vitesse.serve.work import Arrays


def misfit(inputs: Sequence[TensorInfo], feeds: Arrays) -> str:
    """Return in words why feeds do not fit a graph's inputs, "" where they do; symbolic dimensions take any size."""
    if len(feeds) != len(inputs) or any(info.name not in feeds for info in inputs):
        return f"it takes the inputs {_listed({info.name for info in inputs})} and not {_listed(set(feeds))}"
    for info in inputs:
        array = feeds[info.name]
        if dtype_name(array.dtype) != info.dtype:
            return f"it takes {info.dtype} as {info.name!r} and not {array.dtype.name}"
        pairs = zip(info.shape, array.shape, strict=False)
        if len(info.shape) != array.ndim or any(isinstance(own, int) and own != size for own, size in pairs):
            return f"it takes {_shown(info.shape)} as {info.name!r} and not {_shown(array.shape)}"
    return ""


def _listed(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _shown(shape: Sequence[int | str]) -> str:
    return "×".join(map(str, shape))
