"""`separate.conv_pool`: the convolution and then the pooling, each by what is fastest for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.geometry import Geometry, epilogue_of
from vitesse.backends.torch_cuda.kernels.separate import Separate, prepared
from vitesse.backends.torch_cuda.operators.convolutions import max_pool
from vitesse.backends.torch_cuda.problem import Problem

# Keywords of the step that are those of its convolution, and what its others are called in the standard's MaxPool.
_CONV = ("strides", "pads", "dilations", "activation", "out_dtype")
_POOL = {"window": "kernel_shape", "window_strides": "strides", "window_pads": "pads"}


class SeparateConvPool(Separate):
    """Kernel `separate.conv_pool`; see Separate."""

    name = "separate.conv_pool"
    step = "ConvPool"

    def parts(self, tensors: Tensors, attributes: Attributes) -> tuple[Problem, ...]:
        """Return the `Conv`, and the MaxPool of what it makes."""
        first = _conv(tensors, attributes)
        (y,) = first.plain(*first.tensors)
        return first, _pool(y, attributes)

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepare both parts; the call computes one after the other."""
        # Only its shape, type and format are read.
        y = Geometry.of(tensors, attributes).output(epilogue_of(attributes).dtype, torch.device("meta"))
        both = zip((_conv(tensors, attributes), _pool(y, attributes)), tactic.config["parts"], strict=True)
        conv, pool = (prepared(part, chosen) for part, chosen in both)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            return pool(*conv(*_conv_of(given)))

        return run


def _conv(tensors: Tensors, attributes: Attributes) -> Problem:
    keywords = {name: attributes[name] for name in _CONV}
    given = _conv_of(tensors)
    return Problem.of("Conv", keywords, given, (False, True, False, given[3] is not None, False))


def _conv_of(tensors: Tensors) -> tuple[Tensor | None, ...]:
    x, weight, bias = tensors
    return x, weight, None, bias, None


def _pool(y: Tensor | None, attributes: Attributes) -> Problem:
    said = {theirs: attributes[ours] for ours, theirs in _POOL.items()}
    return Problem("MaxPool", said, (y,), (False,), _plain(said))


def _plain(said: Mapping[str, Any]) -> Run:
    """The operator in plain torch."""

    def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
        (x,) = given
        assert x is not None
        made = max_pool(x, **said)
        assert isinstance(made, Tensor)
        return (made,)

    return run


KERNEL = SeparateConvPool()
