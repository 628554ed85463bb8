"""A kernel is found again by another process: its key does not hang on what ran before it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.compiling import said_by


def test_the_order_in_which_kernels_are_loaded_changes_no_key() -> None:
    forwards, backwards = (said_by("keys_by_order.py", order) for order in ("forwards", "backwards"))
    assert len(forwards) > 30
    assert forwards == backwards
