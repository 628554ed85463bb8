"""Code of transformers that a tracer cannot follow with an open batch, replaced while a model is traced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor


@contextmanager
def traceable(model: Any) -> Iterator[None]:
    """Give the code of a model, while it runs, stand-ins of equal results for what cannot be traced or translated.

    * `len` of a tensor must be a plain number, which would fix the batch at the traced one.
    * A check, made with tensors, that shapes add up has no ONNX form.
    * Where the logit of one tensor is computed twice, two clamps in a row lose their bounds in onnxscript 0.7.
    """
    module = sys.modules[type(model).__module__]
    stand_ins = {
        "len": _length,
        "torch_compilable_check": _unchecked,
        "inverse_sigmoid": _inverse_sigmoid,
    }
    with ExitStack() as patches:
        for name, stand_in in stand_ins.items():
            if name == "len" or hasattr(module, name):
                patches.enter_context(patch.object(module, name, stand_in, create=True))
        yield


def _length(thing: Any) -> Any:
    return thing.shape[0] if isinstance(thing, Tensor) else len(thing)


def _unchecked(*arguments: Any, **named: Any) -> None:
    """Check nothing."""


def _inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 − x)) with numerator and denominator in eps..1, one clamp each."""
    return (x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0)).log()
