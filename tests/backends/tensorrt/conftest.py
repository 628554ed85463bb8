"""A fake module on a fake driver that must be clean at the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from backends.tensorrt.fake_api import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    gc.collect()  # page-locked memory goes with the last view of an output
    made.driver.check_clean()
