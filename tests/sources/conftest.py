"""What the exports of all these tests share."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session", autouse=True)
def operators_listed_once() -> Iterator[None]:
    """Keep the table of operators that torch's exporter makes from their sources for every export, 0.4 s each time."""
    if find_spec("torch") is None:
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield
