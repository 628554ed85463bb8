"""A step as kernels see it, and the signature under which what was measured for it is remembered."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, Kernel, Run, Tensors
from vitesse.backends.torch_cuda.steps import STEPS

# Elements from which on a better alignment of an offset changes nothing for a kernel.
_ALIGNED = 64


@dataclass(frozen=True)
class Problem:
    """A step as a kernel sees it.

    Args:
        step: "Linear", …, or a standard operator that a kernel exists for ("MaxPool").
        attributes: the step's keywords with their defaults, and for `Norm` `wanted`: "101" where the first and the
            third of its outputs are read.
        tensors: all inputs in the order of the step's function, None where one is not given; real, on the device.
        constant: which of them never change.
        plain: computes the step in plain torch from all the tensors.
    """

    step: str
    attributes: Mapping[str, Any]
    tensors: tuple[Tensor | None, ...]
    constant: tuple[bool, ...]
    plain: Run

    @classmethod
    def of(cls, step: str, attributes: Attributes, tensors: Tensors, constant: Sequence[bool]) -> Problem:
        """Return a fused step, with what `attributes` does not say as its function has it."""
        said = {**_defaults(step), **attributes}
        return cls(step, said, tuple(tensors), tuple(constant), partial(STEPS[step], **said))

    @property
    def family(self) -> str:
        """Everything that decides which tactics there are but the shapes of what changes."""
        kept = {name: _said(name, value) for name, value in sorted(self.attributes.items())}
        tensors = " ".join(
            _tensor_text(tensor, fixed) for tensor, fixed in zip(self.tensors, self.constant, strict=True)
        )
        return f"{self.step} {json.dumps(kept, separators=(',', ':'))} {tensors}"

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what changes."""
        return tuple(tuple(tensor.shape) for tensor in self.changing)

    @property
    def signature(self) -> str:
        """Equal for nodes that the same tactic suits best: steps, shapes, formats, dtypes and attributes."""
        return f"{self.family} @ {' '.join('x'.join(map(str, shape)) for shape in self.sizes)}"

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """The inputs that change with the image."""
        return tuple(
            tensor
            for tensor, fixed in zip(self.tensors, self.constant, strict=True)
            if tensor is not None and not fixed
        )


@runtime_checkable
class Composed(Kernel, Protocol):
    """A kernel that computes a step as several others: what suits each part best is chosen for that part alone.

    What was chosen is added to its tactics under "parts", and it is left to `prepare` to put it together.
    """

    def parts(self, tensors: Tensors, attributes: Attributes) -> Sequence[Problem]:
        """Return the steps that it is made of, each with real tensors, in the order of computing them."""
        ...


def _defaults(step: str) -> dict[str, Any]:
    keywords = inspect.signature(STEPS[step]).parameters.values()
    return {
        one.name: one.default
        for one in keywords
        if one.kind is one.KEYWORD_ONLY and one.default is not one.empty
    }


def _said(name: str, value: Any) -> Any:
    # Every layer has a scale of its own; that there is one decides. Of an offset its alignment does.
    if name == "out_scale":
        return bool(value)
    return math.gcd(value, _ALIGNED) if name.endswith("_offset") else value


def _tensor_text(tensor: Tensor | None, fixed: bool) -> str:
    """`float16[768,3072]` of a constant, `float16[..3]` of what changes; the memory format where it is not plain."""
    if tensor is None:
        return "-"
    shape = ",".join(map(str, tensor.shape)) if fixed else f"..{tensor.ndim}"
    layout = "" if tensor.is_contiguous() else _layout(tensor, fixed)
    return f"{str(tensor.dtype).removeprefix('torch.')}[{shape}]{layout}"


def _layout(tensor: Tensor, fixed: bool) -> str:
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "nhwc"
    # The order of the axes tells layouts apart at any size; a view with gaps has its strides in the signature.
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: strides[axis], reverse=True)
    return f"axes{''.join(map(str, order))}" + (f"strides{tuple(tensor.stride())}" if fixed else "")
