"""What a model takes and gives, and whether a request's shapes fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vitesse.backends.protocol import TensorInfo
from vitesse.serve.protocol.wording import bad_request, dims, shown

_INT64 = 2**63 - 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class ShapeRange:
    """Shapes that an engine was built for: `least` ≤ shape ≤ `most` in every dimension, fastest at `best`."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """A model as its clients see it.

    Args:
        name, version: in the address; platform: such as "onnxruntime_onnx".
        inputs, outputs: the first axis of every tensor is the batch.
        max_batch: items that one request may have, at least 1.
        shapes: by input, where the engine takes only a range of them.
    """

    name: str
    version: str
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_batch: int
    # Not in the hash, which a mapping has none for; in the comparison all the same.
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict, hash=False)

    def check_shape(self, info: TensorInfo, shape: object) -> tuple[int, ...]:
        """Return a client's shape of one input once it fits; raises Refusal 400 that names the shape expected."""
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            raise bad_request(
                f"the shape of {self._of(info)} is {shown(shape)}; expected a list of whole numbers such as "
                f"{dims(info.shape)}"
            )
        if len(shape) != len(info.shape):
            raise self._unexpected(info, shape, f"it has {len(info.shape)} dimensions")
        if any(not 0 <= size <= _INT64 for size in shape):
            raise self._unexpected(info, shape, "a dimension is from 1 to 2^63 - 1")
        self._check_batch(info, shape)
        for size, wanted in zip(shape, info.shape, strict=True):
            if size == 0 or (isinstance(wanted, int) and size != wanted):
                raise self._unexpected(info, shape)
        self._check_range(info, shape)
        return tuple(shape)

    def _check_batch(self, info: TensorInfo, shape: list[int]) -> None:
        if shape[0] == 0:
            raise bad_request(f"the batch size of {self._of(info)} is 0; expected 1 to {self.max_batch}")
        if shape[0] > self.max_batch:
            raise bad_request(
                f"inference request batch-size must be <= {self.max_batch} for '{self.name}', got {shown(shape[0])}; "
                "send several requests, the server puts them together"
            )

    def _check_range(self, info: TensorInfo, shape: list[int]) -> None:
        allowed = self.shapes.get(info.name)
        if allowed is None:
            return
        for axis, size in enumerate(shape):
            if not allowed.least[axis] <= size <= allowed.most[axis]:
                raise self._unexpected(
                    info,
                    shape,
                    f"dimension {axis} is {size}, and the engine takes min {dims(allowed.least)}, "
                    f"opt {dims(allowed.best)}, max {dims(allowed.most)}",
                )

    def _unexpected(self, info: TensorInfo, shape: list[int], why: str = "") -> Exception:
        reason = f" ({why})" if why else ""
        came = shown(shape).replace(", ", ",")
        return bad_request(
            f"unexpected shape for {self._of(info)}. Expected {dims(info.shape)}, got {came}{reason}"
        )

    def _of(self, info: TensorInfo) -> str:
        return f"input '{info.name}' for model '{self.name}'"


def safe_name(name: str) -> bool:
    """Whether a name from an address may be a model's or a version's: 1 to 128 of A-Z a-z 0-9 _ . + -, no leading dot.

    So that `..`, separators, NUL, percent signs and names of any length end before anything looks them up.
    """
    return _NAME.fullmatch(name) is not None and ".." not in name
