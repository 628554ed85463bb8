"""Every address that a kernel touches in the interpreter held against its tensors: a GPU would not go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from triton.runtime import interpreter


@contextmanager
def watched(monkeypatch: Any, module: ModuleType, *names: str) -> Iterator[list[str]]:
    """Raise where one of these kernels of a module touches memory beside its tensors; gives what was launched."""
    launched: list[str] = []
    tensors: list[Any] = []

    class Watched:
        def __init__(self, name: str) -> None:
            self._name, self._kernel = name, getattr(module, name)

        def __getitem__(self, grid: Any) -> Any:
            def launch(*given: Any, **named: Any) -> None:
                launched.append(self._name)
                tensors[:] = [one for one in given if isinstance(one, torch.Tensor)]
                self._kernel[grid](*given, **named)

            return launch

    def checked(name: str) -> Any:
        right = getattr(interpreter.InterpreterBuilder, name)

        def access(self: Any, pointers: Any, *others: Any) -> Any:
            mask = others[0 if name == "create_masked_load" else 1]
            places = pointers.data[mask.data]
            inside = places != places
            for tensor in tensors:
                begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
                inside |= (places >= begin) & (places < begin + size)
            assert inside.all(), f"{launched[-1]} touches memory beside its tensors"
            return right(self, pointers, *others)

        return access

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(module, name, Watched(name))
        for name in ("create_masked_load", "create_masked_store"):
            patch.setattr(interpreter.InterpreterBuilder, name, checked(name))
        yield launched
