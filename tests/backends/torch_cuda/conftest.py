"""The same kernel tests everywhere: on a GPU where torch has one, otherwise in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

if find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    # Triton reads it when it is imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def interpreted_quickly() -> Iterator[None]:
    """Hundreds of launches in Triton's interpreter: what it looks up anew for each is looked up once.

    Another release may keep things elsewhere, and is left as it is.
    """
    known = find_spec("triton") is not None and version("triton").startswith("3.6.")
    if not known or torch.cuda.is_available():
        yield
        return
    from backends.torch_cuda.quick_interpreter import quick

    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        yield
