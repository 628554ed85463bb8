"""Triton 3.6's interpreter on NumPy 2.4: a loop bound is an array of one element, which is no Python integer any more."""

from __future__ import annotations

from typing import Any

import pytest

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="the kernels are in Triton")


def with_integers(patch: Any) -> Any:
    """Let what patches Triton's tensors for the interpreter also take a loop bound out of its array."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched


@pytest.fixture(autouse=True)
def loop_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_integers(interpreter._patch_lang_tensor))
