"""`separate.conv_chain`: both convolutions one after the other, each by what is fastest for it alone."""

from __future__ import annotations

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.separate import Separate, prepared
from vitesse.backends.torch_cuda.problem import Problem


class SeparateConvChain(Separate):
    """Kernel `separate.conv_chain`; see Separate."""

    name = "separate.conv_chain"
    step = "ConvChain"

    def parts(self, tensors: Tensors, attributes: Attributes) -> tuple[Problem, ...]:
        """Return the `Conv` or `ConvPair` that makes y, and the `Conv` that reads it."""
        first = _first(tensors, attributes)
        (y,) = first.plain(*first.tensors)
        assert y is not None
        return first, _second(y, tensors, attributes)

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepare both parts; the call computes one after the other."""
        x, weight = tensors[:2]
        assert x is not None and weight is not None
        # Only its shape, type and format are read.
        y = torch.empty(
            (x.shape[0], weight.shape[0], *x.shape[2:]),
            dtype=weight.dtype,
            device="meta",
            memory_format=torch.channels_last,
        )
        end, begin = tactic.config["parts"]
        first = prepared(_first(tensors, attributes), end)
        second = prepared(_second(y, tensors, attributes), begin)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            (made,) = first(*_first_of(given))
            return (made, *second(*_second_of(made, given)))

        return run


def _first(tensors: Tensors, attributes: Attributes) -> Problem:
    given = _first_of(tensors)
    keywords = {name: attributes[name] for name in ("activation", "out_dtype")}
    if len(given) == 4:
        keywords["strides"] = attributes["strides"]
        return Problem.of("ConvPair", keywords, given, (False, False, True, given[3] is not None))
    return Problem.of("Conv", keywords, given, (False, True, False, given[3] is not None, False))


def _second(y: Tensor, tensors: Tensors, attributes: Attributes) -> Problem:
    given = _second_of(y, tensors)
    keywords = {"activation": attributes["next_activation"], "out_dtype": attributes["out_dtype"]}
    return Problem.of("Conv", keywords, given, (False, True, False, given[3] is not None, False))


def _first_of(tensors: Tensors) -> tuple[Tensor | None, ...]:
    """Return the inputs of a `ConvPair` where there is a shortcut, of a `Conv` where there is none."""
    x, weight, bias, _, _, residual, other = tensors
    return (x, weight, None, bias, residual) if other is None else (x, other, weight, bias)


def _second_of(y: Tensor | None, tensors: Tensors) -> tuple[Tensor | None, ...]:
    return (y, tensors[3], None, tensors[4], None)


KERNEL = SeparateConvChain()
