"""Every address that a kernel touches in the interpreter held against its tensors: a GPU would not go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

# What the interpreter touches memory by, loads and stores of descriptors too: where it is given addresses and mask.
ACCESSES = {"create_masked_load": (0, 1), "create_masked_store": (0, 2), "create_atomic_rmw": (1, 3)}
# A kernel is patched where it is launched: the module whose code names it, and the name.
Program = tuple[ModuleType, str]


@contextmanager
def watched(monkeypatch: Any, *programs: Program) -> Iterator[list[str]]:
    """Raise where one of these programs touches memory beside its tensors; gives the names of what was launched.

    An access has to lie in one tensor from its first byte to its last: what runs from one into its neighbour is beside
    both.
    """
    launched: list[str] = []
    tensors: list[tuple[int, int]] = []

    class Watched:
        def __init__(self, module: ModuleType, name: str) -> None:
            self._name, self._kernel = name, getattr(module, name)

        def __getitem__(self, grid: Any) -> Any:
            def launch(*given: Any, **named: Any) -> None:
                launched.append(self._name)
                tensors[:] = [reach(one) for one in (*given, *named.values()) if is_memory(one)]
                self._kernel[grid](*given, **named)

            return launch

    def checked(name: str) -> Any:
        right, (at, masked_at) = getattr(interpreter.InterpreterBuilder, name), ACCESSES[name]

        def access(self: Any, *given: Any, **named: Any) -> Any:
            # A mask that a scalar of Python went into has integers.
            touched = given[at].data[np.asarray(given[masked_at].data, bool)]
            if touched.size:
                low, high = int(touched.min()), int(touched.max())
                inside = any(begin <= low and high < end for begin, end in tensors)
                assert inside, (
                    f"{launched[-1]} touches memory beside its tensors, {low} to {high}: "
                    f"they lie at {', '.join(f'{begin} to {end - 1}' for begin, end in tensors)}"
                )
            return right(self, *given, **named)

        return access

    with monkeypatch.context() as patch:
        for module, name in programs:
            patch.setattr(module, name, Watched(module, name))
        for name in ACCESSES:
            patch.setattr(interpreter.InterpreterBuilder, name, checked(name))
        yield launched


def is_memory(argument: Any) -> bool:
    """Whether a kernel can touch memory by it."""
    return isinstance(argument, torch.Tensor | TensorDescriptor)


def reach(argument: Any) -> tuple[int, int]:
    """The first byte of a tensor, or of the one that a descriptor describes, and the one after its last."""
    tensor = argument.base if isinstance(argument, TensorDescriptor) else argument
    begin = tensor.data_ptr()
    return begin, begin + elements(tensor) * tensor.element_size()


def elements(tensor: torch.Tensor) -> int:
    """From its first element to its last one in memory, which are more than it has where a view has gaps."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
